"""Grouped-query attention against an einsum over expanded heads in float64."""

import pytest
import torch
from torch import Tensor

from benchmarks.inspection.recorder import recorded_launches
from kernels import attention
from tests.kernels.rounding import DTYPES, ROUNDING


def formula(qkv: Tensor, H: int, K: int) -> Tensor:
    """Every query head beside its own copy of the shared keys and values, float64."""
    B, N, width = qkv.shape
    D = width // (H + 2 * K)
    heads = qkv.double().reshape(B, N, H + 2 * K, D)
    q = heads[:, :, :H]
    shared = [h // (H // K) for h in range(H)]
    k, v = heads[:, :, [H + s for s in shared]], heads[:, :, [H + K + s for s in shared]]  # [B, N, H, D]
    weights = torch.einsum("bnhd,bmhd->bhnm", q, k).div(D**0.5).softmax(-1)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v).reshape(B, N, H * D)


def check(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", sums: float = 2.0**-21) -> None:
    """Scores, weights and output round once each in the dtype.

    A softmax averages the errors of the values, so together they stay below one rounding of the largest number;
    sums in float32 add a few of float32's.
    """
    B, N, H, K, D = shape
    qkv = torch.randn(B, N, (H + 2 * K) * D, generator=torch.Generator().manual_seed(N)).to(dtype)
    out = attention(qkv.to(device), H, K).cpu()
    assert out.dtype == dtype
    assert out.shape == (B, N, H * D)
    bound = float(qkv.double().abs().max()) * (ROUNDING[dtype] + sums)
    torch.testing.assert_close(out.double(), formula(qkv, H, K), rtol=0, atol=bound)


@DTYPES
@pytest.mark.parametrize(
    "shape",  # B, N, H, K, D
    [
        pytest.param((2, 64, 8, 2, 48), id="served"),
        pytest.param((1, 1, 1, 1, 1), id="one-of-everything"),
        pytest.param((3, 49, 6, 6, 17), id="heads-equal-kv-heads"),
        pytest.param((2, 37, 7, 1, 5), id="one-kv-head"),
        pytest.param((5, 13, 9, 3, 31), id="odd"),
    ],
)
def test_equals_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(shape, dtype, sums=2.0**-22)


def test_large_scores_do_not_overflow() -> None:
    qkv = torch.zeros(1, 2, 3 * 4)
    qkv[0, :, :8] = torch.tensor([[100.0], [-100.0]])  # scores of +-20,000, beyond exp in any dtype
    qkv[0, :, 8:] = torch.tensor([[1.0], [2.0]])
    assert attention(qkv, 1, 1)[0, :, 0].tolist() == [1.0, 2.0]


def test_reads_a_strided_projection() -> None:
    wide = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(attention(wide[..., 4:36], 4, 2), attention(wide[..., 4:36].contiguous(), 4, 2))


@pytest.mark.parametrize(
    ("shape", "H", "K"),
    [
        pytest.param((2, 5, 31), 4, 2, id="width"),
        pytest.param((2, 5, 30), 3, 2, id="heads-not-shared-evenly"),
        pytest.param((5, 32), 4, 2, id="no-batch"),
    ],
)
def test_refuses_shapes_that_hold_no_heads(shape: tuple[int, ...], H: int, K: int) -> None:
    with pytest.raises(ValueError, match=rf"does not hold {H} query and 2 x {K} kv heads"):
        attention(torch.zeros(shape), H, K)


@pytest.mark.parametrize("head_dim", [4, 12, 136], ids=str)
def test_other_head_dims_run_the_reference(head_dim: int) -> None:
    qkv = torch.randn(1, 5, 3 * head_dim, generator=torch.Generator().manual_seed(0))
    with recorded_launches() as launches:
        out = attention(qkv, 1, 1)
    assert launches == []
    torch.testing.assert_close(out.double(), formula(qkv, 1, 1), rtol=0, atol=1e-5)


def test_small_batches_take_small_tiles() -> None:
    """So that a large GPU has a program for every multiprocessor."""
    with recorded_launches() as launches:
        for batch in (1, 16, 17):
            attention(torch.empty(batch, 64, 12 * 96, device="meta", dtype=torch.bfloat16), 8, 2)
    assert [launch.grid for launch in launches] == [(4, 8, 1), (4, 8, 16), (1, 8, 17)]


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("shape", [(64, 64, 8, 2, 96), (1, 64, 8, 2, 96), (32, 49, 8, 2, 48), (1, 300, 4, 2, 40)])
def test_kernel_on_a_gpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(shape, dtype, "cuda")
