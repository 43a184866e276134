"""The latent pool.

Letters: S slots, C x H x W the image.
"""

import numpy as np
import torch

from kernels.philox import normal
from service.engine.latents import LatentPool
from tests.service.engine.tiny import CPU

SHAPE = (3, 4, 5)  # C, H, W


def test_an_image_starts_from_the_noise_of_its_seed_alone() -> None:
    pool = LatentPool(6, SHAPE, CPU)
    pool.x.fill_(7.0)
    slots, seeds = torch.tensor([4, 1, 5]), torch.tensor([2**52 + 1, 3, 3])
    pool.start(slots, seeds)
    for slot, seed in zip(slots.tolist(), seeds.tolist(), strict=True):
        noise = normal(torch.tensor([seed]), torch.tensor([0]), 3 * 4 * 5).view(SHAPE)
        assert torch.equal(pool.x[slot], noise)
    assert (pool.x[[0, 2, 3]] == 7.0).all()
    assert not torch.equal(pool.x[4], pool.x[1])


def test_the_state_is_float32() -> None:
    pool = LatentPool(2, SHAPE, CPU)
    assert pool.x.dtype == pool.history.dtype == torch.float32
    assert pool.x.shape == pool.history.shape == (2, *SHAPE)


def test_pixels_are_clamped_and_rounded() -> None:
    pool = LatentPool(3, (1, 1, 6), CPU)
    pool.x[2] = torch.tensor([-5.0, -1.0, 0.0, 0.999, 1.0, 5.0])
    pixels = pool.read(torch.tensor([2]))
    assert pixels.dtype == np.uint8
    assert pixels.ravel().tolist() == [0, 0, 128, 255, 255, 255]  # 127.5 rounds to even


def test_images_come_in_the_order_asked_with_channels_last() -> None:
    pool = LatentPool(4, SHAPE, CPU)
    pool.x.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    pixels = pool.read(torch.tensor([3, 0]))
    assert pixels.shape == (2, 4, 5, 3)
    for image, slot in zip(pixels, (3, 0), strict=True):
        expected = ((pool.x[slot] + 1) * 127.5).round().permute(1, 2, 0)
        np.testing.assert_array_equal(image, expected.numpy())
