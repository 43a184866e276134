"""The embedding kernels by the interpreter; formulas and bounds: tests/kernels/test_embedding.py."""

import pytest
import torch

from kernels import label_silu, sinusoidal_embedding
from tests.kernels.test_embedding import (
    DTYPES,
    TIMESTEPS,
    label_bound,
    label_formula,
    label_inputs,
    wave_bound,
    waves,
)


@DTYPES
@pytest.mark.parametrize("dim", [256, 2, 7, 260], ids=lambda dim: f"dim{dim}")
def test_waves_equal_the_formula(dim: int, dtype: torch.dtype) -> None:
    positions = torch.tensor(TIMESTEPS)
    out = sinusoidal_embedding(positions, dim, dtype)
    torch.testing.assert_close(out.double(), waves(positions, dim), rtol=0, atol=wave_bound(dtype, 1000))


def test_whole_timesteps_are_welcome() -> None:
    whole, fractional = torch.tensor([0, 7, 999]), torch.tensor([0.0, 7.0, 999.0])
    assert torch.equal(sinusoidal_embedding(whole, 32), sinusoidal_embedding(fractional, 32))


@DTYPES
@pytest.mark.parametrize(("B", "D"), [(4, 384), (1, 1), (7, 257)])
def test_label_silu_equals_the_formula(B: int, D: int, dtype: torch.dtype) -> None:
    x, table, labels = label_inputs(B, D, dtype)
    out, expected = label_silu(x, table, labels), label_formula(x, table, labels)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=label_bound(dtype, expected))


def test_strided_inputs_are_read_right() -> None:
    x, table, labels = label_inputs(4, 64, torch.float32)
    expected = label_formula(x[:, ::2], table[:, ::2], labels)
    out = label_silu(x[:, ::2], table[:, ::2], labels.repeat_interleave(2)[::2])
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=label_bound(torch.float32, expected))
