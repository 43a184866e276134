"""Sums, upsampling and concatenation against plain torch in float64."""

from itertools import product

import pytest
import torch
from torch import Tensor

from kernels import Sum, join

ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
DTYPES = pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
KINDS = ("x", "x+bias", "x+y", "all")
FORMS = ((1, 0), (2, 0), (3, 0), (1, 24), (2, 5))  # upsampled by, channels beside


def total_of(kind: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Sum:
    generator = torch.Generator().manual_seed(shape[1])
    x, y = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    x_bias, y_bias = (torch.randn(shape[1], generator=generator).to(dtype) for _ in range(2))
    return {"x": Sum(x), "x+bias": Sum(x, x_bias=x_bias), "x+y": Sum(x, y), "all": Sum(x, y, x_bias, y_bias)}[kind]


def formula(total: Sum, beside: Tensor | None, upsample: int) -> Tensor:
    x, *others = (t if t is None else t.double() for t in total)
    assert x is not None
    for term in others:
        if term is not None:
            x = x + (term if term.dim() == 4 else term.view(1, -1, 1, 1))
    x = x.repeat_interleave(upsample, 2).repeat_interleave(upsample, 3)
    return x if beside is None else torch.cat([x, beside.double()], dim=1)


def check(total: Sum, channels: int, upsample: int, dtype: torch.dtype) -> None:
    B, _, H, W = total.x.shape
    beside = torch.randn(B, channels, H * upsample, W * upsample).to(dtype).to(total.x.device) if channels else None
    out = join(total, beside, upsample)
    assert out.dtype == dtype
    # up to three sums of numbers below 8; in plain torch each of them rounds
    torch.testing.assert_close(out.double(), formula(total, beside, upsample), rtol=0, atol=3 * 8 * ROUNDING[dtype])
    if beside is not None:
        assert torch.equal(out[:, -channels:], beside)


@DTYPES
def test_equals_the_formula(dtype: torch.dtype) -> None:
    for kind, (upsample, beside) in product(KINDS, FORMS):
        check(total_of(kind, (2, 40, 4, 6), dtype), beside, upsample, dtype)


def test_nothing_to_do_is_no_copy() -> None:
    x = torch.randn(1, 4, 3, 3)
    assert join(Sum(x)) is x


def test_gradients_pass() -> None:
    x, bias = torch.randn(1, 4, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    join(Sum(x, x, bias), upsample=2).sum().backward()
    assert x.grad is not None
    assert bias.grad is not None
    assert x.grad.unique().tolist() == [8]
    assert bias.grad.tolist() == [36] * 4


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(2, 4, 3, 3)
    with pytest.raises(ValueError, match="differ"):
        join(Sum(x, x[:1]))
    with pytest.raises(ValueError, match=r"\(2, 4, 3, 3\) does not fit beside \(2, 4, 6, 6\)"):
        join(Sum(x), beside=x, upsample=2)


@pytest.mark.gpu
@DTYPES
def test_kernel_on_a_gpu(dtype: torch.dtype) -> None:
    for kind, (upsample, beside) in product(KINDS, FORMS):
        x, *others = (t if t is None else t.cuda() for t in total_of(kind, (2, 40, 4, 6), dtype))
        assert x is not None
        check(Sum(x, *others), beside, upsample, dtype)
