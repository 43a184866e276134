"""The LayerNorm kernel by the interpreter; formula and bounds: tests/kernels/test_layer_norm.py."""

import pytest
import torch
from torch import Tensor

from kernels import gated_residual_layer_norm
from tests.kernels.rounding import DTYPES, ROUNDING
from tests.kernels.test_layer_norm import bound, formula, inputs

SHAPES = pytest.mark.parametrize(
    "shape",
    [
        pytest.param((2, 3, 768), id="served"),
        pytest.param((2, 5, 384), id="served-small"),
        pytest.param((1, 1, 2), id="smallest"),
        pytest.param((3, 7, 131), id="prime"),
        pytest.param((2, 2, 2100), id="a-token-a-program"),
    ],
)


def sliced(*rows: Tensor) -> tuple[Tensor, ...]:
    """The same numbers as slices of one wide tensor, as the modulation of all blocks comes out of one product."""
    return torch.stack(rows, dim=1).unbind(1)


@DTYPES
@SHAPES
def test_the_norm_by_itself_equals_the_formula(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, _, _, scale, shift = inputs(shape, dtype)
    sliced_scale, sliced_shift = sliced(scale, shift)
    stream, out = gated_residual_layer_norm(x, torch.zeros_like(x), None, sliced_scale, sliced_shift)
    assert torch.equal(stream, x)
    torch.testing.assert_close(out.double(), formula(x, scale, shift), rtol=0, atol=bound(dtype, x, scale))


@DTYPES
@SHAPES
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "positions"])
def test_residual_equals_the_formula(shape: tuple[int, int, int], dtype: torch.dtype, gated: bool) -> None:
    x, y, gate, scale, shift = inputs(shape, dtype)
    y = y if gated else y[:1]
    expected = x.double() + (gate.double()[:, None] * y.double() if gated else y.double())
    sliced_gate, sliced_scale, sliced_shift = sliced(gate, scale, shift)
    stream, out = gated_residual_layer_norm(x, y, sliced_gate if gated else None, sliced_scale, sliced_shift)
    # product and sum in float32, rounded once to the dtype
    torch.testing.assert_close(stream.double(), expected, rtol=0, atol=16 * (ROUNDING[dtype] + 2.0**-23))
    # the norm sees the sum before it is rounded
    torch.testing.assert_close(out.double(), formula(expected, scale, shift), rtol=0, atol=bound(dtype, x, scale))


def test_mean_far_from_zero_keeps_its_variance() -> None:
    """E[x^2] - E[x]^2 in float32 would be off by 6 % here."""
    x = 1000 + torch.randn(1, 4, 768, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(1, 768)
    _, out = gated_residual_layer_norm(x, torch.zeros_like(x), None, zeros, zeros)
    # the mean of numbers around 1000 rounds by 3e-5, the rest is relative to results up to 4
    torch.testing.assert_close(out.double(), formula(x, zeros, zeros), rtol=0, atol=2e-4)
