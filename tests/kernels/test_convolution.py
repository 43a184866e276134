"""Convolutions against float64, on a CPU by PyTorch and on a GPU by the kernel."""

import pytest
import torch
from torch import Tensor, nn

from kernels import DeferredSum, convolve
from kernels.convolution import PARTS, tiles
from tests.kernels.rounding import DTYPES, ROUNDING

# B, C, H, W, N, side, stride: all kinds of channels, an odd image, one pixel, every side
SMALL = [
    (2, 3, 8, 8, 16, 3, 1),
    (1, 32, 8, 6, 24, 3, 1),
    (2, 48, 5, 7, 20, 3, 2),
    (1, 64, 4, 4, 80, 1, 1),
    (3, 20, 3, 3, 5, 5, 1),
    (1, 128, 4, 4, 32, 3, 1),
    (1, 16, 1, 1, 16, 3, 1),
    (5, 32, 8, 8, 64, 3, 1),
]
# of the shipped UNet: 1 and many images, with and without parts
LARGE = [
    (1, 512, 4, 4, 256, 3, 1),
    (64, 384, 8, 8, 128, 3, 1),
    (64, 96, 32, 32, 32, 3, 1),
    (9, 64, 16, 16, 64, 3, 2),
]


def case(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[nn.Conv2d, Tensor]:
    B, C, H, W, N, side, stride = shape
    torch.manual_seed(0)
    conv = nn.Conv2d(C, N, side, stride, side // 2).to(dtype).requires_grad_(False)
    return conv, torch.randn(B, C, H, W).to(dtype).contiguous(memory_format=torch.channels_last)


def check(conv: nn.Conv2d, x: Tensor, split: bool) -> DeferredSum:
    """Within the rounding of K products in float32, in any order, and of the result."""
    assert conv.bias is not None
    image, weight, bias = x.double(), conv.weight.double(), conv.bias.double()
    place = conv.stride[0], conv.kernel_size[0] // 2
    expected = nn.functional.conv2d(image, weight, bias, *place)
    sizes = nn.functional.conv2d(image.abs(), weight.abs(), bias.abs(), *place)  # of the numbers added up
    total = convolve(conv, x, split=split)
    assert total.shape == expected.shape
    error = (total.compute().double() - expected).abs()
    K = conv.weight[0].numel()
    assert (error <= expected.abs() * ROUNDING[x.dtype] + sizes * (K + PARTS[0]) * 2.0**-24).all()
    return total


@DTYPES
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_equals_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if dtype == torch.float32:
        total = check(*case(shape, dtype), split=True)
        assert total.has_one_term
    else:  # a CPU rounds half precision at other places, too
        conv, x = case(shape, dtype)
        assert torch.equal(convolve(conv, x).x, conv(x))


def test_gradients_pass() -> None:
    conv, x = case((1, 3, 4, 4, 4, 3, 1), torch.float32)
    conv.requires_grad_(True)
    convolve(conv, x).x.sum().backward()
    assert conv.weight.grad is not None


def test_other_convolutions_are_refused() -> None:
    x = torch.zeros(1, 4, 4, 4)
    for conv in (
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 2, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
        nn.Linear(4, 4),
    ):
        with pytest.raises(ValueError, match="odd square kernel"):
            convolve(conv, x)


def test_the_sum_is_divided_while_programs_are_few() -> None:
    tiles_of = lambda images: tiles(images * 64, 64, 128, 384, 3, torch.bfloat16)
    parts = [tiles_of(images).parts for images in (1, 4, 16, 64, 256)]
    assert parts[0] == PARTS[0]
    assert parts == sorted(parts, reverse=True)
    assert parts[-1] == 1
    # an image of 1,024 pixels is never divided: one program of the next norm would read all of its parts
    assert tiles(1024, 1024, 32, 32, 3, torch.bfloat16).parts == 1


def test_no_part_begins_beyond_the_sum() -> None:
    for C in (3, 16, 20, 36, 48, 64, 68, 96, 384):
        chosen = tiles(64, 64, 64, C, 3, torch.float32)
        steps = -(-9 * C // chosen.STEP)
        assert (chosen.parts - 1) * -(-steps // chosen.parts) <= steps


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("shape", SMALL + LARGE, ids=str)
def test_kernel_on_a_gpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    conv, x = case(shape, dtype)
    for split in (True, False):
        check(conv.cuda(), x.cuda(), split)
