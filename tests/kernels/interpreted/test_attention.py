"""The attention kernel by the interpreter; formula and bound: tests/kernels/test_attention.py."""

import sys

import pytest
import torch

from kernels import attention
from tests.kernels.rounding import DTYPES
from tests.kernels.test_attention import check, formula

SHAPES = pytest.mark.parametrize(
    "shape",  # B, N, H, K, D
    [
        pytest.param((1, 64, 4, 2, 96), id="served"),
        pytest.param((2, 49, 2, 1, 48), id="served-small"),
        pytest.param((1, 1, 1, 1, 8), id="one-token"),
        pytest.param((1, 77, 2, 1, 40), id="two-passes"),
        pytest.param((1, 130, 2, 2, 104), id="three-passes"),
        pytest.param((1, 128, 1, 1, 128), id="whole-passes"),
        pytest.param((1, 320, 1, 1, 16), id="five-passes"),
    ],
)


@pytest.fixture(params=[True, False], ids=["many-programs", "few-programs"])
def tile_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large tiles, and the small ones that a batch of few images takes."""
    monkeypatch.setattr(sys.modules["kernels.attention"], "PROGRAMS", 0 if request.param else 10**9)


@pytest.mark.usefixtures("tile_size")
@DTYPES
@SHAPES
def test_equals_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(shape, dtype)


@pytest.mark.parametrize("tokens", [2, 130])
def test_large_scores_do_not_overflow(tokens: int) -> None:
    """Scores of +-40,000, beyond exp in any dtype; the largest key is the last one, in a later pass."""
    qkv = torch.zeros(1, tokens, 3 * 8)
    qkv[..., :8], qkv[..., 8:16], qkv[0, -1, 8:16] = 100.0, -140.0, 140.0
    qkv[..., 16:] = torch.arange(tokens).view(1, -1, 1)
    assert attention(qkv, 1, 1).unique().tolist() == [tokens - 1]


def test_neighbours_in_memory_are_not_read() -> None:
    """NaN around the image and in columns that belong to nobody must not reach a masked tile."""
    wide = torch.full((3, 49, 120), torch.nan)
    wide[1] = torch.randn(49, 120, generator=torch.Generator().manual_seed(0))
    expected = formula(wide[1:2], 1, 1)
    out = attention(wide[1:2], 1, 1)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=5 * 2.0**-20)
