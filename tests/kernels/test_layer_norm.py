"""adaLN modulation and its gated residual against explicit means and variances in float64."""

import pytest
import torch
from torch import Tensor

from kernels import gated_residual_layer_norm
from tests.kernels.rounding import DTYPES, ROUNDING

SHAPES = pytest.mark.parametrize(
    "shape",
    [
        pytest.param((2, 64, 384), id="served"),
        pytest.param((1, 1, 2), id="smallest"),
        pytest.param((3, 7, 131), id="prime"),
        pytest.param((5, 49, 33), id="odd"),
    ],
)


def formula(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    x, scale, shift = x.double(), scale.double(), shift.double()
    mean = x.sum(-1, keepdim=True) / x.shape[-1]
    variance = ((x - mean) ** 2).sum(-1, keepdim=True) / x.shape[-1]
    return (x - mean) / (variance + eps) ** 0.5 * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def inputs(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x, y [B, N, D] and gate, scale, shift [B, D]."""
    B, _, D = shape
    generator = torch.Generator().manual_seed(D)
    tensors = (torch.randn(s, generator=generator) for s in (shape, shape, (B, D), (B, D), (B, D)))
    return tuple(t.to(dtype) for t in tensors)


def bound(dtype: torch.dtype, x: Tensor, scale: Tensor) -> float:
    """Norm, product and sum each round once; a norm's output is at most 6 here, times (1 + scale).

    No element is the largest in all three, so two roundings of that size bound the error. Statistics in float32
    are off by a few of its roundings, which a small standard deviation magnifies.
    """
    size = 6 * float(1 + scale.double().abs().max()) * max(1.0, float(1 / x.double().std(-1).min()))
    return size * (2 * ROUNDING[dtype] + 2.0**-22)


@DTYPES
@SHAPES
def test_the_norm_by_itself_equals_the_formula(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Nothing is added, so an error is one of the norm."""
    x, _, _, scale, shift = inputs(shape, dtype)
    stream, out = gated_residual_layer_norm(x, torch.zeros_like(x), None, scale, shift)
    assert torch.equal(stream, x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), formula(x, scale, shift), rtol=0, atol=bound(dtype, x, scale))


@DTYPES
@SHAPES
def test_gated_residual_equals_the_formula(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, y, gate, scale, shift = inputs(shape, dtype)
    stream, modulated = gated_residual_layer_norm(x, y, gate, scale, shift)
    assert stream.dtype == modulated.dtype == dtype
    expected = x.double() + gate.double().unsqueeze(1) * y.double()
    # product and sum round once each
    torch.testing.assert_close(
        stream.double(), expected, rtol=0, atol=2 * ROUNDING[dtype] * float(expected.abs().max() + 1)
    )
    # the norm reads the rounded stream, so it is compared on that
    torch.testing.assert_close(
        modulated.double(), formula(stream, scale, shift), rtol=0, atol=bound(dtype, stream, scale)
    )


def test_inputs_stay_as_they_were() -> None:
    x, y, gate, scale, shift = tensors = inputs((2, 3, 8), torch.float32)
    copies = [t.clone() for t in tensors]
    gated_residual_layer_norm(x, y, gate, scale, shift)
    assert all(torch.equal(t, copy) for t, copy in zip(tensors, copies, strict=True))


def test_modulation_of_the_wrong_shape_is_refused() -> None:
    x, row = torch.zeros(2, 3, 8), torch.zeros(2, 8)
    with pytest.raises(ValueError, match=r"modulation must be \(2, 8\).*\(1, 8\)"):
        gated_residual_layer_norm(x, x, None, row, row[:1])
    with pytest.raises(ValueError, match=r"modulation must be \(2, 8\).*\(2, 7\)"):
        gated_residual_layer_norm(x, x, row[:, :7], row, row)
    with pytest.raises(ValueError, match="differ"):
        gated_residual_layer_norm(x, x[:, :2], row, row, row)


@pytest.mark.gpu
@DTYPES
@SHAPES
def test_kernel_on_a_gpu(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, y, gate, scale, shift = inputs(shape, dtype)
    stream, out = gated_residual_layer_norm(x.cuda(), y.cuda(), gate.cuda(), scale.cuda(), shift.cuda())
    expected = x.double() + gate.double().unsqueeze(1) * y.double()
    # as for the reference, but the kernel's norm sees the sum before it is rounded
    size = float(expected.abs().max() + 1)
    torch.testing.assert_close(stream.cpu().double(), expected, rtol=0, atol=2 * ROUNDING[dtype] * size)
    torch.testing.assert_close(
        out.cpu().double(), formula(expected, scale, shift), rtol=0, atol=bound(dtype, stream.cpu(), scale)
    )
