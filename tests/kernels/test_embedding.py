"""Timestep waves and the label's SiLU against float64."""

import math

import pytest
import torch
from torch import Tensor

from kernels import label_silu, sinusoidal_embedding
from tests.kernels.rounding import DTYPES, ROUNDING

TIMESTEPS = [0.0, 1.0, 0.25, 499.5, 999.0, 1000.0]


def waves(positions: Tensor, dim: int) -> Tensor:
    """Number by number, float64."""
    half = dim // 2
    angles = [[p * 10_000 ** (-i / half) for i in range(half)] for p in positions.tolist()]
    rows = [[*map(math.cos, row), *map(math.sin, row), *[0.0] * (dim % 2)] for row in angles]
    return torch.tensor(rows, dtype=torch.float64)


def wave_bound(dtype: torch.dtype, largest: float) -> float:
    """An angle up to `largest` times a frequency, exp and product in float32: five roundings of the angle."""
    return 5 * largest * 2.0**-24 + ROUNDING[dtype] + 2.0**-22


def label_inputs(B: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(D)
    x, table = 3 * torch.randn(B, D, generator=generator), torch.randn(5, D, generator=generator)
    return x.to(dtype), table.to(dtype), torch.arange(B) % 5


def label_formula(x: Tensor, table: Tensor, labels: Tensor) -> Tensor:
    joined = x.double() + table.double()[labels]
    return joined / (1 + (-joined).exp())


def label_bound(dtype: torch.dtype, expected: Tensor) -> float:
    """The sum and its SiLU, whose slope is at most 1.1, round once each; a few of float32's come on top."""
    size = float(expected.abs().max()) + 1
    return size * (2.2 * ROUNDING[dtype] + 2.0**-21)


@DTYPES
@pytest.mark.parametrize("dim", [256, 2, 7, 64, 260], ids=lambda dim: f"dim{dim}")
def test_waves_equal_the_formula(dim: int, dtype: torch.dtype) -> None:
    positions = torch.tensor(TIMESTEPS)
    out = sinusoidal_embedding(positions, dim, dtype)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), waves(positions, dim), rtol=0, atol=wave_bound(dtype, 1000))


def test_whole_timesteps_have_the_waves_of_fractional_ones() -> None:
    whole, fractional = torch.tensor([0, 7, 999]), torch.tensor([0.0, 7.0, 999.0])
    assert torch.equal(sinusoidal_embedding(whole, 32), sinusoidal_embedding(fractional, 32))


@DTYPES
@pytest.mark.parametrize(("B", "D"), [(4, 384), (1, 1), (7, 257)])
def test_label_silu_equals_the_formula(B: int, D: int, dtype: torch.dtype) -> None:
    x, table, labels = label_inputs(B, D, dtype)
    out, expected = label_silu(x, table, labels), label_formula(x, table, labels)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=label_bound(dtype, expected))


def test_rows_must_match_labels() -> None:
    x, table, labels = label_inputs(3, 8, torch.float32)
    with pytest.raises(ValueError, match=r"x \(3, 8\) must be \[2, 8\]: one row per label"):
        label_silu(x, table, labels[:2])
    with pytest.raises(ValueError, match=r"x \(3, 7\) must be \[3, 8\]"):
        label_silu(x[:, :7], table, labels)


def test_gradients_reach_the_table() -> None:
    x, table, labels = label_inputs(3, 8, torch.float64)
    table.requires_grad_()
    label_silu(x, table, labels).sum().backward()
    assert table.grad is not None
    assert table.grad[:3].abs().min() > 0
    assert not table.grad[3:].any()


@pytest.mark.gpu
@DTYPES
def test_kernels_on_a_gpu(dtype: torch.dtype) -> None:
    positions = torch.tensor(TIMESTEPS)
    out = sinusoidal_embedding(positions.cuda(), 256, dtype).cpu()
    torch.testing.assert_close(out.double(), waves(positions, 256), rtol=0, atol=wave_bound(dtype, 1000))
    x, table, labels = label_inputs(4, 384, dtype)
    expected = label_formula(x, table, labels)
    joined = label_silu(x.cuda(), table.cuda(), labels.cuda()).cpu()
    torch.testing.assert_close(joined.double(), expected, rtol=0, atol=label_bound(dtype, expected))
