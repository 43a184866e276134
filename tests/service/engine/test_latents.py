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
