"""GroupNorm, FiLM and SiLU against explicit means and variances in float64."""

import pytest
import torch
from torch import Tensor

from benchmarks.inspection.recorder import recorded_launches
from kernels import DeferredSum, group_norm, residual_group_norm
from tests.kernels.rounding import DTYPES, ROUNDING


def formula(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    film: tuple[Tensor, Tensor] | None,
    silu: bool,
    eps: float = 1e-5,
) -> Tensor:
    x, weight, bias = x.double(), weight.double(), bias.double()
    groups = x.reshape(x.shape[0], num_groups, -1)
    mean = groups.sum(-1, keepdim=True) / groups.shape[-1]
    variance = ((groups - mean) ** 2).sum(-1, keepdim=True) / groups.shape[-1]
    y = ((groups - mean) / (variance + eps) ** 0.5).reshape(x.shape)
    y = y * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
    if film is not None:
        scale, shift = (f.double()[..., None, None] for f in film)
        y = (1 + scale) * y + shift
    return y / (1 + (-y).exp()) if silu else y


def inputs(shape: tuple[int, int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    B, C = shape[:2]
    generator = torch.Generator().manual_seed(C)
    x = 2 * torch.randn(shape, generator=generator) + 3
    rows = (torch.randn(n, generator=generator) / 2 for n in ((C,), (C,), (B, C), (B, C)))
    return x.to(dtype), *(row.to(dtype) for row in rows)


def bound(dtype: torch.dtype, scale: Tensor, weight: Tensor) -> float:
    """Norm, scale, shift and SiLU each round once in the dtype.

    The largest intermediate result is the norm's output, up to 5, times weight and scale; no pixel is the largest
    in all of them, so two roundings of that size bound the error. Statistics in float32 add a few of its roundings.
    """
    size = 5 * float((1 + scale.double().abs()).max() * weight.double().abs().max() + 1)
    return size * (2 * ROUNDING[dtype] + 2.0**-22)


@DTYPES
@pytest.mark.parametrize("silu", [True, False], ids=["silu", "linear"])
@pytest.mark.parametrize("film", [True, False], ids=["film", "plain"])
@pytest.mark.parametrize(
    ("shape", "num_groups"),
    [
        pytest.param((2, 64, 8, 8), 4, id="served"),
        pytest.param((1, 7, 5, 3), 7, id="one-channel-a-group"),
        pytest.param((3, 35, 3, 11), 5, id="odd"),
        pytest.param((2, 13, 7, 7), 1, id="one-group"),
    ],
)
def test_equals_the_formula(
    shape: tuple[int, int, int, int], num_groups: int, film: bool, silu: bool, dtype: torch.dtype
) -> None:
    x, weight, bias, scale, shift = inputs(shape, dtype)
    expected = formula(x, num_groups, weight, bias, (scale, shift) if film else None, silu)
    modulation = (scale, shift) if film else ()
    out = group_norm(x, num_groups, weight, bias, *modulation, silu=silu)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=bound(dtype, scale, weight))


def test_statistics_of_an_offset_image_survive_float16() -> None:
    """E[x^2] - E[x]^2 in float16 would overflow at 300^2 and lose the variance of 1."""
    x = (300 + torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))).half()
    out = group_norm(x, 2, torch.ones(4).half(), torch.zeros(4).half(), silu=False)
    # one rounding of results up to 4; their float16 inputs are the same in both
    expected = formula(x, 2, torch.ones(4), torch.zeros(4), None, silu=False)
    torch.testing.assert_close(out.double(), expected, rtol=2.0**-10, atol=1e-3)


def test_eps_keeps_a_constant_image_finite() -> None:
    out = group_norm(torch.full((1, 2, 3, 3), 5.0), 1, torch.ones(2), torch.full((2,), 0.25), silu=False)
    # the mean may be off by float32's 5e-7, over the root of eps
    torch.testing.assert_close(out, torch.full((1, 2, 3, 3), 0.25), rtol=0, atol=5e-7 / 1e-5**0.5)


def test_refuses_groups_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="10 channels do not divide into 4 groups"):
        group_norm(torch.zeros(1, 10, 2, 2), 4, torch.ones(10), torch.zeros(10))


def test_refuses_half_a_film() -> None:
    x, row, film = torch.zeros(1, 4, 2, 2), torch.zeros(4), torch.zeros(1, 4)
    with pytest.raises(ValueError, match="scale and shift go together"):
        group_norm(x, 2, row, row, scale=film)
    with pytest.raises(ValueError, match="scale and shift go together"):
        group_norm(x, 2, row, row, shift=film)


def test_refuses_branches_that_differ() -> None:
    x, row = torch.zeros(1, 4, 2, 2), torch.zeros(4)
    with pytest.raises(ValueError, match=r"x \(1, 4, 2, 2\) and y \(1, 4, 2, 1\) differ"):
        group_norm(DeferredSum(x, x[..., :1]), 2, row, row)


def test_residual_gives_the_sum_and_its_norm() -> None:
    x, weight, bias, scale, _ = inputs((2, 32, 4, 4), torch.float32)
    total = DeferredSum(x, x / 3)
    stream, out = residual_group_norm(total, 2, weight, bias)
    expected = x.double() * 4 / 3
    torch.testing.assert_close(
        stream.double(), expected, rtol=0, atol=32 * 2 * 2.0**-24
    )  # a third and a sum below 32
    normed = formula(stream, 2, weight, bias, None, True)
    torch.testing.assert_close(out.double(), normed, rtol=0, atol=bound(torch.float32, scale, weight))


def test_warps_are_a_power_of_two() -> None:
    """Triton takes no other number. Three parts once asked for twelve."""
    for parts in range(1, 10):
        total = DeferredSum(torch.empty(parts, 2, 32, 16, 16, device="meta"))
        weight = torch.ones(32, device="meta")
        with torch.no_grad(), recorded_launches() as recorded:
            group_norm(total, 2, weight, weight)
        (launch,) = recorded
        assert launch.options["num_warps"].bit_count() == 1


def launches(x: Tensor, num_groups: int) -> list[str]:
    weight = torch.ones(x.shape[1], device="meta")
    with torch.no_grad(), recorded_launches() as recorded:
        group_norm(x, num_groups, weight, weight)
    return [launch.name for launch in recorded]


def test_only_large_groups_take_two_launches() -> None:
    assert launches(torch.empty(1, 64, 32, 32, device="meta"), 4) == ["group_norm_kernel"]
    assert launches(torch.empty(1, 64, 33, 32, device="meta"), 4) == ["statistics_kernel", "group_norm_kernel"]


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("shape", [(64, 64, 32, 32), (2, 1024, 4, 4), (1, 35, 3, 11), (1, 64, 64, 64)], ids=str)
def test_kernel_on_a_gpu(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    x, weight, bias, scale, shift = inputs(shape, dtype)
    groups = max(1, shape[1] // 16)
    groups = groups if shape[1] % groups == 0 else 5
    expected = formula(x, groups, weight, bias, (scale, shift), True)
    out = group_norm(x.cuda(), groups, weight.cuda(), bias.cuda(), scale.cuda(), shift.cuda()).cpu()
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=bound(dtype, scale, weight))
