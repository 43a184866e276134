"""The condition of a network: the sinusoidal embedding of the timestep, and SiLU of time plus class embedding.

Both are small. They are kernels because a step of few images costs what its launches cost, and in plain PyTorch
these two are eleven launches.

Letters: B batch, D width, V rows of the label table.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import tl, triton, use_triton
from kernels.cosine import cos_radians

COLUMNS = 256  # of a program of one warp: 8 a thread
MAX_PERIOD = 10_000.0


def sinusoidal_embedding_reference(positions: Tensor, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    half = dim // 2
    frequencies = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, device=positions.device) / half)
    angles = positions.float()[:, None] * frequencies  # [B, half]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(embedding, (0, dim - 2 * half)).to(dtype)


def label_silu_reference(x: Tensor, table: Tensor, labels: Tensor) -> Tensor:
    return F.silu(x + F.embedding(labels, table))


@triton.jit
def _sinusoidal_embedding_kernel(
    positions,  # [B]
    out,  # [B, D]
    D: tl.constexpr,
    HALF: tl.constexpr,
    EXPONENT: tl.constexpr,  # -log2(max_period) / HALF
    COLUMNS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_sine = column >= HALF
    frequency = tl.exp2(tl.where(is_sine, column - HALF, column).to(tl.float32) * EXPONENT)
    angle = tl.load(positions + image).to(tl.float32) * frequency
    wave = cos_radians(tl.where(is_sine, angle - 1.5707963267948966, angle))  # sin(a) = cos(a - pi / 2)
    wave = tl.where(column < 2 * HALF, wave, 0.0)  # an odd width ends with a zero
    tl.store(out + image * D + column, wave.to(out.dtype.element_ty), mask=column < D)


@triton.jit
def _label_silu_kernel(
    x,  # [B, D]
    table,  # [V, D]
    labels,  # [B]
    out,  # [B, D]
    D: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    label = tl.load(labels + image).to(tl.int64)
    total = tl.load(x + image * D + column, mask=column < D, other=0.0).to(tl.float32)
    total += tl.load(table + label * D + column, mask=column < D, other=0.0).to(tl.float32)
    tl.store(out + image * D + column, (total * tl.sigmoid(total)).to(out.dtype.element_ty), mask=column < D)


def _launch_sinusoidal(positions: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    out = torch.empty(len(positions), dim, dtype=dtype, device=positions.device)
    half = dim // 2
    _sinusoidal_embedding_kernel[(len(positions), triton.cdiv(dim, COLUMNS))](
        positions.contiguous(),
        out,
        D=dim,
        HALF=half,
        EXPONENT=-math.log2(MAX_PERIOD) / max(half, 1),
        COLUMNS=COLUMNS,
        num_warps=1,
    )
    return out


def _launch_label_silu(x: Tensor, table: Tensor, labels: Tensor) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    B, D = x.shape
    _label_silu_kernel[(B, triton.cdiv(D, COLUMNS))](
        x, table.contiguous(), labels.contiguous(), out, D=D, COLUMNS=COLUMNS, num_warps=1
    )
    return out


def sinusoidal_embedding(positions: Tensor, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Cosines, then sines, of positions times geometric frequencies (Vaswani et al. 2017, section 3.5), in float32.

    Args:
        positions: [B], integer or float, up to 1e5.
        dim: D; if it is odd, the last column is 0.

    Returns:
        [B, dim] in dtype.
    """
    if use_triton(positions):
        return _launch_sinusoidal(positions, dim, dtype)
    return sinusoidal_embedding_reference(positions, dim, dtype)


def label_silu(x: Tensor, table: Tensor, labels: Tensor) -> Tensor:
    """silu(x + table[labels]).

    Args:
        x: [B, D].
        table: [V, D].
        labels: [B], 0 .. V - 1. The kernel does not check them; the caller must.

    Returns:
        [B, D].

    Raises:
        ValueError: shapes do not match.
    """
    wanted = (labels.shape[0], table.shape[1])  # not len(labels), which would fix the rows of an exported network
    if x.shape != wanted:
        raise ValueError(f"x {tuple(x.shape)} must be {list(wanted)}: one row per label")
    if use_triton(x, table):
        return _launch_label_silu(x, table, labels)
    return label_silu_reference(x, table, labels)
