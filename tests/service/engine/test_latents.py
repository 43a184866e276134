"""The latent pool.

Letters: S slots, C x H x W the image.
"""

import pytest
import torch

from kernels.backend import image_layout
from kernels.gather_rows import gather_rows
from service.engine.latents import LatentPool
from tests.service.engine.tiny import CPU

SHAPE = (3, 4, 5)  # C, H, W
FINISHED = torch.tensor([[1.0, 0.0]])  # the look of an image that is done


def test_the_state_is_float32() -> None:
    pool = LatentPool(2, SHAPE, CPU)
    assert pool.x.dtype == pool.history.dtype == torch.float32
    assert pool.x.shape == pool.history.shape == (3, *SHAPE)  # two slots and the scratch one
    assert (len(pool), pool.scratch_slot) == (2, 2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_is_kept(channels: int, layout: torch.memory_format) -> None:
    """One channel lies the same in both layouts; its strides say which one a convolution will take it for."""
    pool = LatentPool(2, (channels, 4, 5), CPU, layout)
    assert image_layout(pool.x) == layout
    assert pool.x.stride() == pool.history.stride()
    rows = gather_rows(pool.x, torch.zeros(2, 3, dtype=torch.int64), torch.bfloat16)
    assert image_layout(rows) == layout


def test_pixels_are_clamped_and_rounded() -> None:
    pool = LatentPool(3, (1, 1, 6), CPU)
    pool.x[2] = torch.tensor([-5.0, -1.0, 0.0, 0.999, 1.0, 5.0])
    pixels = pool.read(torch.tensor([2]), FINISHED)
    assert pixels.dtype == torch.uint8
    assert pixels.flatten().tolist() == [0, 0, 128, 255, 255, 255]  # 127.5 rounds to even


def test_images_come_in_the_order_asked_with_channels_last() -> None:
    pool = LatentPool(4, SHAPE, CPU)
    pool.x.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    pixels = pool.read(torch.tensor([3, 0]), FINISHED.expand(2, 2))
    assert pixels.shape == (2, 4, 5, 3)
    for image, slot in zip(pixels, (3, 0), strict=True):
        expected = ((pool.x[slot] + 1) * 127.5).round().permute(1, 2, 0)
        assert torch.equal(image, expected.to(torch.uint8))


def test_a_look_mixes_the_image_with_its_history() -> None:
    pool = LatentPool(2, (1, 1, 1), CPU)
    pool.x[:2], pool.history[:2] = torch.tensor([0.5, -0.5]).view(2, 1, 1, 1), 0.25
    pixels = pool.read(torch.tensor([0, 1]), torch.tensor([[0.0, 1.0], [1.0, -2.0]]))
    assert pixels.flatten().tolist() == [159, 0]  # 0.25; -0.5 - 2 * 0.25 = -1
