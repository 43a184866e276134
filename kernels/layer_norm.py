"""A gated residual addition, then LayerNorm without affine, modulated as in adaLN.

Letters: B batch, N tokens, D width. adaLN: Peebles & Xie 2022 (arXiv:2212.09748), section 3.2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import contiguous_rows, tl, triton, use_triton, width_tiles

ROWS = 4  # tokens a program, one a warp: a sum stays inside a warp and needs no barrier; 2 tokens in float32
MAX_REGISTERS = 64  # then half of a multiprocessor's warps are resident
EPS = 1e-6
WIDE = 2048  # above this width one program takes one token, with all its warps


def gated_residual_layer_norm_reference(
    x: Tensor, y: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """torch computes the statistics in float32 for every dtype."""
    x = x + (y if gate is None else gate[:, None] * y)  # [B, N, D]
    return x, F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale[:, None]) + shift[:, None]


@triton.jit
def _layer_norm_kernel(
    x,  # [rows, D], rows = B * N
    y,  # [y_rows, D]; row r of x gets row r % y_rows
    gate,  # [B, D] by gate_stride, or None
    scale,  # [B, D] by scale_stride
    shift,
    stream,  # [rows, D]: x + gate * y
    out,  # [rows, D]
    rows,
    tokens,
    y_rows,
    gate_stride,
    scale_stride,
    shift_stride,
    D: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    ROWS: tl.constexpr,
    EPS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]  # [ROWS, 1]
    column = tl.arange(0, MAIN)[None, :]  # [1, MAIN]
    image = (row // tokens).to(tl.int64)
    mask = (row < rows) & (column < D)
    row_offs = row.to(tl.int64) * D
    scale, shift = scale + image * scale_stride, shift + image * shift_stride  # [ROWS, 1] pointers, as all below
    x, out = x + row_offs, out + row_offs
    y, stream = y + (row % y_rows).to(tl.int64) * D, stream + row_offs
    if gate is not None:
        gate += image * gate_stride
    main = _residual_sum(x, y, gate, stream, column, mask)  # [ROWS, MAIN]
    total = tl.sum(main, axis=1, keep_dims=True)
    if TAIL > 0:
        tail_column = MAIN + tl.arange(0, TAIL)[None, :]
        tail_mask = (row < rows) & (tail_column < D)
        tail = _residual_sum(x, y, gate, stream, tail_column, tail_mask)
        total += tl.sum(tail, axis=1, keep_dims=True)

    # A second pass over registers: E[x^2] - E[x]^2 loses the variance to rounding if the mean is large.
    mean = total / D
    main = tl.where(column < D, main - mean, 0.0)
    squares = tl.sum(main * main, axis=1, keep_dims=True)
    if TAIL > 0:
        tail = tl.where(tail_column < D, tail - mean, 0.0)
        squares += tl.sum(tail * tail, axis=1, keep_dims=True)
    rstd = tl.rsqrt(squares / D + EPS)

    _modulate(main * rstd, scale, shift, out, column, mask)
    if TAIL > 0:
        _modulate(tail * rstd, scale, shift, out, tail_column, tail_mask)


@triton.jit
def _residual_sum(x, y, gate, stream, column, mask):
    """x + [gate *] y of one tile in float32, written to the residual stream. Takes row pointers."""
    value = tl.load(x + column, mask=mask, other=0.0).to(tl.float32)
    branch = tl.load(y + column, mask=mask, other=0.0).to(tl.float32)
    if gate is not None:
        branch *= tl.load(gate + column, mask=mask, other=0.0).to(tl.float32)
    value += branch
    tl.store(stream + column, value.to(stream.dtype.element_ty), mask=mask)
    return value


@triton.jit
def _modulate(normed, scale, shift, out, column, mask):
    """Write normed * (1 + scale) + shift. Takes row pointers."""
    factor = 1.0 + tl.load(scale + column, mask=mask, other=0.0).to(tl.float32)
    offset = tl.load(shift + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + column, (normed * factor + offset).to(out.dtype.element_ty), mask=mask)


def _launch(x: Tensor, y: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """gate, scale and shift may be column slices of one wide tensor: the kernel reads them by row stride."""
    B, N, D = x.shape
    x, y = x.contiguous(), y.contiguous()
    scale, shift = contiguous_rows(scale), contiguous_rows(shift)
    gate = None if gate is None else contiguous_rows(gate)
    out, stream = torch.empty_like(x), torch.empty_like(x)
    rows = ROWS * 2 // x.element_size() if D <= WIDE else 1
    # The tail of a width up to 512 would move only 8 bytes a thread, so one tile covers it.
    main, tail = width_tiles(D) if D > 512 else (triton.next_power_of_2(D), 0)
    _layer_norm_kernel[(triton.cdiv(B * N, rows),)](
        x,
        y,
        gate,
        scale,
        shift,
        stream,
        out,
        B * N,
        N,
        y.shape[0] * N,
        0 if gate is None else gate.stride(0),
        scale.stride(0),
        shift.stride(0),
        D=D,
        MAIN=main,
        TAIL=tail,
        ROWS=rows,
        EPS=EPS,
        num_warps=4,
        maxnreg=MAX_REGISTERS,
    )
    return stream, out


def gated_residual_layer_norm(
    x: Tensor, y: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """x' = x + gate * y, then LayerNorm(x') * (1 + scale) + shift, between two branches of a DiT block.

    Args:
        x: [B, N, D], the residual stream.
        y: [B, N, D] or [1, N, D], the output of the branch.
        gate: [B, D]; None adds y as it is (position embeddings).
        scale, shift: [B, D].

    Returns:
        (x', modulated), both [B, N, D].

    Raises:
        ValueError: shapes do not match.
    """
    _check(x, scale, shift, *([] if gate is None else [gate]))
    if x.shape[1:] != y.shape[1:] or y.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"x {tuple(x.shape)} and y {tuple(y.shape)} differ")
    if use_triton(x, y, gate, scale, shift):
        return _launch(x, y, gate, scale, shift)
    return gated_residual_layer_norm_reference(x, y, gate, scale, shift)


def _check(x: Tensor, *rows: Tensor) -> None:
    wanted = (x.shape[0], x.shape[-1])
    if any(r.shape != wanted for r in rows):
        got = [tuple(r.shape) for r in rows]
        raise ValueError(f"modulation must be {wanted} for x {tuple(x.shape)}, got {got}")
