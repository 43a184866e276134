"""The network's input of a step: which numbers, in which dtype and layout.

Letters: S slots, R rows, C x H x W the image.
"""

import pytest
import torch
from torch import Tensor

from kernels.gather_rows import gather_rows, initial_noise
from kernels.philox import normal
from tests.kernels.rounding import DTYPES

SHAPE = (3, 5, 7)  # C, H, W
SLOTS = 6
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
ROWS = torch.tensor([[4, 9, 0], [1, 2**52 + 1, 1], [0, 3, 1], [1, 2**52 + 1, 1], [4, 9, 0], [5, 8, 0]])
FRESH = {1: 2**52 + 1, 0: 3}  # seeds by slot
NOISE_ERROR = 4e-6  # logarithm, root and cosine of numbers up to 5.7, a few float32 roundings each


def latents(layout: torch.memory_format, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    x = torch.randn(SLOTS, *shape, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=layout)


def check(x: Tensor, rows: Tensor, dtype: torch.dtype) -> None:
    before = x.cpu().clone()
    out = gather_rows(x, rows, dtype).cpu()
    assert out.dtype == dtype
    assert out.stride() == torch.empty_like(x[: len(rows)]).stride()
    for row, (slot, seed, fresh) in zip(out, rows.tolist(), strict=True):
        if fresh:
            noise = normal(torch.tensor([seed]), torch.tensor([0]), x[0].numel()).view(x.shape[1:])
            torch.testing.assert_close(x[slot].cpu(), noise, rtol=0, atol=NOISE_ERROR)
        else:
            assert torch.equal(x[slot].cpu(), before[slot])
        assert torch.equal(row, x[slot].cpu().to(dtype))  # one rounding, of what the pool holds now
    for slot in set(range(SLOTS)) - set(rows[:, 0].tolist()):
        assert torch.equal(x[slot].cpu(), before[slot])


@DTYPES
@LAYOUTS
def test_rows_hold_their_slots_and_new_ones_their_noise(layout: torch.memory_format, dtype: torch.dtype) -> None:
    check(latents(layout), ROWS, dtype)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 28, 28), (2, 23, 29)], ids=str)
@LAYOUTS
def test_any_image_size(shape: tuple[int, int, int], layout: torch.memory_format) -> None:
    check(latents(layout, shape), ROWS[1:3], torch.float32)


def test_noise_does_not_depend_on_the_layout() -> None:
    """An element's noise is that of its place in the image, not in memory."""
    usual, channels_last = latents(torch.contiguous_format), latents(torch.channels_last)
    gather_rows(usual, ROWS, torch.float32)
    gather_rows(channels_last, ROWS, torch.float32)
    assert torch.equal(usual, channels_last)


def test_rubbish_in_a_new_slot_is_overwritten() -> None:
    x = latents(torch.contiguous_format)
    x[1] = torch.nan
    check(x, ROWS, torch.float32)


def test_initial_noise_is_that_of_step_0() -> None:
    seeds = torch.tensor([9, 2**52 + 1])
    expected = normal(seeds, torch.zeros_like(seeds), 105).view(2, *SHAPE)
    torch.testing.assert_close(initial_noise(seeds, SHAPE), expected, rtol=0, atol=NOISE_ERROR)


def test_what_does_not_fit_is_refused() -> None:
    x = latents(torch.contiguous_format)
    with pytest.raises(ValueError, match=r"rows must be \[R, 3\], got \(6, 2\)"):
        gather_rows(x, ROWS[:, :2], torch.float32)
    with pytest.raises(ValueError, match="latents must be float32, got torch.float16"):
        gather_rows(x.half(), ROWS, torch.float32)
    with pytest.raises(ValueError, match="must be contiguous or channels_last"):
        gather_rows(x[:, :, ::2], ROWS, torch.float32)


@pytest.mark.gpu
@DTYPES
@LAYOUTS
def test_kernel_on_a_gpu(layout: torch.memory_format, dtype: torch.dtype) -> None:
    check(latents(layout).cuda(), ROWS.cuda(), dtype)
