"""Sums, upsampling and concatenation against plain torch in float64."""

from itertools import product

import pytest
import torch
from torch import Tensor

from kernels import DeferredSum, concat_skip, materialize, upsample2x
from tests.kernels.rounding import DTYPES, ROUNDING

KINDS = ("x", "x+y", "parts+y")
FORMS = ("materialize", "concat_skip", "upsample2x")


def total_of(kind: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> DeferredSum:
    generator = torch.Generator().manual_seed(shape[1])
    x, y = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    parts = torch.randn(3 * shape[0], *shape[1:], generator=generator)
    parts = parts.contiguous(memory_format=torch.channels_last).view(3, *shape)
    return {"x": DeferredSum(x), "x+y": DeferredSum(x, y), "parts+y": DeferredSum(parts, y)}[kind]


def sum_in_float64(total: DeferredSum) -> Tensor:
    x = total.x.double().reshape(-1, *total.shape).sum(0)
    return x if total.y is None else x + total.y.double()


def check(total: DeferredSum, form: str, dtype: torch.dtype, skip_channels: int = 24) -> None:
    expected = sum_in_float64(total)
    if form == "materialize":
        out = materialize(total)
    elif form == "upsample2x":
        out, expected = upsample2x(total), expected.repeat_interleave(2, 2).repeat_interleave(2, 3)
    else:
        skip = torch.randn(total.shape[0], skip_channels, *total.shape[2:]).to(dtype).to(total.x.device)
        out, expected = concat_skip(total, skip), torch.cat([expected, skip.double()], dim=1)
        assert torch.equal(out[:, -skip_channels:], skip)
    assert out.dtype == dtype
    # up to three sums of numbers below 8; in plain torch each of them rounds
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=3 * 8 * ROUNDING[dtype])


@DTYPES
def test_equals_the_formula(dtype: torch.dtype) -> None:
    for kind, form in product(KINDS, FORMS):
        check(total_of(kind, (2, 40, 4, 6), dtype), form, dtype)


def test_one_term_is_not_copied() -> None:
    x = torch.randn(1, 4, 3, 3)
    assert materialize(x) is x
    assert materialize(DeferredSum(x)) is x


def test_gradients_pass() -> None:
    x = torch.randn(1, 4, 3, 3, requires_grad=True)
    upsample2x(DeferredSum(x, x)).sum().backward()
    assert x.grad is not None
    assert x.grad.unique().tolist() == [8]


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(2, 4, 3, 3)
    with pytest.raises(ValueError, match="differ"):
        materialize(DeferredSum(x, x[:1]))
    with pytest.raises(ValueError, match=r"must be \[2, any, 3, 3\].*got \(2, 4, 3, 2\)"):
        concat_skip(x, x[..., :2])


@pytest.mark.gpu
@DTYPES
def test_kernel_on_a_gpu(dtype: torch.dtype) -> None:
    for kind, form in product(KINDS, FORMS):
        x, y = total_of(kind, (2, 40, 4, 6), dtype)
        check(DeferredSum(x.cuda(), None if y is None else y.cuda()), form, dtype)
