"""The convolution kernel by the interpreter; formula and bounds: tests/kernels/test_convolution.py."""

import pytest
import torch

from kernels import convolution as module
from tests.kernels.rounding import DTYPES
from tests.kernels.test_convolution import SMALL, case, check


@DTYPES
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_equals_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    total = check(*case(shape, dtype), split=True)
    if total.parts == 1:
        assert total.x.dtype == dtype
        assert total.x.is_contiguous(memory_format=torch.channels_last)
    else:
        assert total.x.dtype == torch.float32
        assert total.x[0].is_contiguous(memory_format=torch.channels_last)


def test_parts_add_up_to_the_undivided_sum() -> None:
    conv, x = case((1, 128, 4, 4, 32, 3, 1), torch.float32)
    parts = check(conv, x, split=True)
    assert parts.parts > 1
    whole = check(conv, x, split=False)
    assert whole.parts == 1
    torch.testing.assert_close(parts.compute(), whole.x, rtol=1e-5, atol=1e-5)


def test_a_tile_may_begin_inside_an_image_and_end_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "tiles", lambda *_: module.Tiles(32, 16, 16, parts=1, num_warps=4, num_stages=2))
    check(*case((5, 32, 3, 3, 24, 3, 1), torch.float32), split=True)  # nine pixels an image
