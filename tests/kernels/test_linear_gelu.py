"""A product with GELU against float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import linear_gelu
from tests.kernels.rounding import DTYPES, ROUNDING


def inputs(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    new = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)
    return new(2, rows, 48), new(72, 48) / 7, new(72)


def check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    expected = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    out = linear_gelu(x, weight, bias)
    assert out.dtype == x.dtype
    # one rounding before GELU and one after, of numbers below 8; GELU's slope is at most 1.13; 48 sums in float32
    atol = 8 * (2.2 * ROUNDING[x.dtype] + 48 * 2.0**-24)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=atol)


@DTYPES
def test_equals_the_formula(dtype: torch.dtype) -> None:
    check(*inputs(5, dtype))


def test_gradients_pass() -> None:
    x, weight, bias = inputs(3, torch.float32)
    linear_gelu(x.requires_grad_(True), weight, bias).sum().backward()
    assert x.grad is not None


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("rows", [1, 64, 1000])
def test_on_a_gpu(rows: int, dtype: torch.dtype) -> None:
    check(*(t.cuda() for t in inputs(rows, dtype)))
