"""The GroupNorm kernels by the interpreter; formula and inputs: tests/kernels/test_group_norm.py."""

import sys

import pytest
import torch

from kernels import DeferredSum, group_norm, residual_group_norm
from tests.kernels.rounding import DTYPES, ROUNDING
from tests.kernels.test_group_norm import bound, formula, inputs

SHAPES = pytest.mark.parametrize(
    ("shape", "num_groups"),
    [
        pytest.param((2, 32, 8, 8), 2, id="served"),
        pytest.param((1, 48, 4, 4), 2, id="24-channels-a-group"),
        pytest.param((1, 7, 5, 3), 7, id="one-channel-a-group"),
        pytest.param((2, 35, 3, 11), 5, id="odd"),
        pytest.param((2, 13, 7, 7), 1, id="one-group"),
    ],
)


@pytest.fixture(params=[False, True], ids=["one-program", "chunks"])
def split(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups in one program each; and in chunks of a few pixels, of which the last one is not full."""
    if request.param:
        module = sys.modules["kernels.group_norm"]
        monkeypatch.setattr(module, "ONE_PROGRAM", 0)
        monkeypatch.setattr(module, "CHUNK", 64)


@pytest.mark.usefixtures("split")
@DTYPES
@pytest.mark.parametrize("film", [True, False], ids=["film", "plain"])
@SHAPES
def test_equals_the_formula(
    shape: tuple[int, int, int, int], num_groups: int, film: bool, dtype: torch.dtype
) -> None:
    x, weight, bias, scale, shift = inputs(shape, dtype)
    expected = formula(x, num_groups, weight, bias, (scale, shift) if film else None, film)
    wide = torch.cat([scale, shift], dim=1)  # FiLM comes as slices of one wide tensor
    modulation = (wide[:, : shape[1]], wide[:, shape[1] :]) if film else ()
    out = group_norm(x, num_groups, weight, bias, *modulation, silu=film)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=bound(dtype, scale, weight))


@pytest.mark.usefixtures("split")
@DTYPES
@SHAPES
def test_a_sum_is_added_up_on_the_way(
    shape: tuple[int, int, int, int], num_groups: int, dtype: torch.dtype
) -> None:
    x, weight, bias, scale, _ = inputs(shape, dtype)
    y, parts = x.flip(0, 2) / 4, torch.cat([x.float(), x.flip(1).float(), x.flip(3).float()])
    parts = parts.contiguous(memory_format=torch.channels_last).view(3, *shape)
    total = DeferredSum(parts, y.contiguous(memory_format=torch.channels_last))
    expected = parts.double().sum(0) + y.double()
    stream, out = residual_group_norm(total, num_groups, weight, bias)
    # three sums in float32 of numbers below 32, one rounding to the dtype
    torch.testing.assert_close(stream.double(), expected, rtol=0, atol=32 * (ROUNDING[dtype] + 3 * 2.0**-24))
    normed = formula(expected, num_groups, weight, bias, None, True)
    torch.testing.assert_close(out.double(), normed, rtol=0, atol=bound(dtype, scale, weight))


@pytest.mark.usefixtures("split")
def test_a_mean_far_from_zero_keeps_its_variance() -> None:
    """E[x^2] - E[x]^2 in float32 would be off by 6 % here."""
    x = 1000 + torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    ones, zeros = torch.ones(16), torch.zeros(16)
    expected = formula(x, 1, ones, zeros, None, silu=False)
    # a mean of numbers around 1000 rounds by 6e-5; the rest is relative to results up to 4
    torch.testing.assert_close(group_norm(x, 1, ones, zeros, silu=False).double(), expected, rtol=0, atol=2e-4)


def test_nothing_to_add_leaves_the_stream_as_it_is() -> None:
    x, weight, bias, *_ = inputs((1, 32, 4, 4), torch.float32)
    x = x.contiguous(memory_format=torch.channels_last)
    stream, _ = residual_group_norm(DeferredSum(x), 2, weight, bias)
    assert stream is x


@pytest.mark.usefixtures("split")
def test_eps_keeps_a_constant_image_finite() -> None:
    row = torch.full((16,), 0.25)
    out = group_norm(torch.full((1, 16, 4, 4), 5.0), 1, torch.ones(16), row, silu=False)
    # the mean may be off by float32's 5e-7, over the root of eps
    torch.testing.assert_close(out, torch.full((1, 16, 4, 4), 0.25), rtol=0, atol=5e-7 / 1e-5**0.5)


def test_film_of_any_layout() -> None:
    """A kernel reads the numbers of a row side by side; columns of a transposed tensor are copied first."""
    x, weight, bias, scale, shift = inputs((2, 32, 4, 4), torch.float32)
    expected = formula(x, 2, weight, bias, (scale, shift), True)
    out = group_norm(x, 2, weight, bias, scale.t().contiguous().t(), shift.t().contiguous().t())
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=bound(torch.float32, scale, weight))
