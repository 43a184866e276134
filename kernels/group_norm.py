"""GroupNorm, then optional FiLM, then optional SiLU, in one launch; the default UNet has 37 such chains.

Letters: B batch, C channels, H x W pixels, G groups. GroupNorm: Wu & He 2018 (arXiv:1803.08494);
FiLM: Perez et al. 2017 (arXiv:1709.07871), here as (1 + scale) * y + shift.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import contiguous_rows, tl, triton, use_triton
from kernels.deferred_sum import DeferredSum, as_deferred_sum, load_sum

# Elements of a group that one program keeps in registers, 64 a thread. A single image has too few groups to fill a
# GPU (4 of 64 channels), but splitting them would cost a second launch per norm, which is more than it saves.
ONE_PROGRAM = 16_384
CHUNK = 4096  # elements of a program where a group is larger
EPS = 1e-5  # torch's default
MAX_REGISTERS = 128  # then two programs of 8 warps are resident on a multiprocessor; in float32 one of 16


def group_norm_reference(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    silu: bool = True,
) -> Tensor:
    """torch computes the statistics in float32 for every dtype of x."""
    y = F.group_norm(x, num_groups, weight, bias, EPS)  # [B, C, H, W]
    if scale is not None and shift is not None:
        y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return F.silu(y) if silu else y


@triton.jit
def _group_norm_kernel(
    x,  # [PARTS, B, H * W, C] in memory (channels_last), like all images here
    y,  # [B, H * W, C] or None
    weight,  # [C]
    bias,
    scale,  # [B, C] by scale_stride, or None with shift
    shift,
    stream,  # the sum, or None where it is not needed
    out,
    partial,  # [B, G, chunks, 2] mean and M2 (sum of squared deviations), or None: one program a group
    scale_stride,
    shift_stride,
    part_stride,
    C,
    PARTS: tl.constexpr,
    HW: tl.constexpr,
    CPG: tl.constexpr,  # channels a group
    PIXELS: tl.constexpr,  # of a program
    CHANNELS: tl.constexpr,
    CHUNKS: tl.constexpr,  # chunks of a group, rounded up to a power of two
    SILU: tl.constexpr,
    EPS: tl.constexpr,
):
    group, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    pixel = (tl.program_id(0) * PIXELS + tl.arange(0, PIXELS))[:, None]
    in_group = tl.arange(0, CHANNELS)[None, :] < CPG
    channel = group * CPG + tl.arange(0, CHANNELS)[None, :]
    mask = (pixel < HW) & in_group
    offs = image * HW * C + pixel.to(tl.int64) * C + channel
    value = load_sum(x, y, offs, mask, part_stride, PARTS)
    if stream is not None:
        tl.store(stream + offs, value.to(stream.dtype.element_ty), mask=mask)
    if partial is None:
        mean, squares = _statistics(value, mask, HW * CPG)
    else:
        mean, squares = _merged(partial, image * tl.num_programs(1) + group, HW, CPG, PIXELS, CHUNKS)

    factor = tl.load(weight + channel, mask=in_group, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=in_group, other=0.0).to(tl.float32)
    if scale is not None:
        film = 1.0 + tl.load(scale + image * scale_stride + channel, mask=in_group, other=0.0).to(tl.float32)
        added = tl.load(shift + image * shift_stride + channel, mask=in_group, other=0.0).to(tl.float32)
        factor, offset = factor * film, offset * film + added
    value = (value - mean) * (tl.rsqrt(squares / (HW * CPG) + EPS) * factor) + offset
    if SILU:
        value *= tl.sigmoid(value)
    tl.store(out + offs, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _statistics_kernel(
    x,
    y,
    partial,
    part_stride,
    C,
    PARTS: tl.constexpr,
    HW: tl.constexpr,
    CPG: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Mean and M2 of one chunk, for groups above ONE_PROGRAM elements."""
    chunk, group, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    pixel = (chunk * PIXELS + tl.arange(0, PIXELS))[:, None]
    in_group = tl.arange(0, CHANNELS)[None, :] < CPG
    channel = group * CPG + tl.arange(0, CHANNELS)[None, :]
    mask = (pixel < HW) & in_group
    offs = image * HW * C + pixel.to(tl.int64) * C + channel
    value = load_sum(x, y, offs, mask, part_stride, PARTS)
    mean, squares = _statistics(value, mask, tl.minimum(HW - chunk * PIXELS, PIXELS) * CPG)
    partial_ptr = partial + ((image * tl.num_programs(1) + group) * tl.num_programs(0) + chunk) * 2
    tl.store(partial_ptr, mean)
    tl.store(partial_ptr + 1, squares)


@triton.jit
def _statistics(value, mask, count):
    """Mean and M2 in two passes over registers: E[x^2] - E[x]^2 loses the variance to rounding at a large mean."""
    mean = tl.sum(tl.where(mask, value, 0.0)) / count
    centred = tl.where(mask, value - mean, 0.0)
    return mean, tl.sum(centred * centred)


@triton.jit
def _merged(partial, group, HW: tl.constexpr, CPG: tl.constexpr, PIXELS: tl.constexpr, CHUNKS: tl.constexpr):
    """Mean and M2 of a group from those of its chunks (Chan et al. 1979, equation 2.1)."""
    chunks: tl.constexpr = (HW + PIXELS - 1) // PIXELS
    chunk = tl.arange(0, CHUNKS)
    ptrs = partial + (group * chunks + chunk) * 2
    count = tl.where(chunk < chunks, tl.minimum(HW - chunk * PIXELS, PIXELS) * CPG, 0).to(tl.float32)
    means = tl.load(ptrs, mask=chunk < chunks, other=0.0)
    squares = tl.load(ptrs + 1, mask=chunk < chunks, other=0.0)
    mean = tl.sum(means * count) / (HW * CPG)
    return mean, tl.sum(squares + count * (means - mean) * (means - mean))


def _tiles(channels: int, num_groups: int, pixels: int) -> dict[str, int]:
    """Sizes for both kernels: a program takes a whole group where it fits into registers, else a chunk of it."""
    per_group = channels // num_groups
    lanes = triton.next_power_of_2(per_group)
    rows = triton.next_power_of_2(pixels)
    rows = rows if rows * lanes <= ONE_PROGRAM else max(1, CHUNK // lanes)
    return {"HW": pixels, "CPG": per_group, "PIXELS": rows, "CHANNELS": lanes}


def _warps(tiles: dict[str, int], parts: int, element_size: int) -> int:
    loads = tiles["PIXELS"] * tiles["CHANNELS"] * min(parts, 4)  # a thread with all parts in flight spills
    return min(4 * element_size, triton.next_power_of_2(max(1, loads // 1024)))


def _launch(
    total: DeferredSum,
    num_groups: int,
    affine: tuple[Tensor, Tensor],
    film: tuple[Tensor, Tensor] | None,
    silu: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    total = total.channels_last()
    B, C, H, W = total.shape
    dtype = total.x.dtype if total.parts == 1 else affine[0].dtype
    out = torch.empty((B, C, H, W), dtype=dtype, device=total.x.device, memory_format=torch.channels_last)
    stream = torch.empty_like(out) if keep else None
    parts = {"part_stride": out.numel(), "C": C, "PARTS": total.parts}
    scale, shift = (None, None) if film is None else (contiguous_rows(film[0]), contiguous_rows(film[1]))
    tiles = _tiles(C, num_groups, H * W)
    chunks = triton.cdiv(H * W, tiles["PIXELS"])
    warps = _warps(tiles, total.parts, out.element_size())
    grid, partial = (chunks, num_groups, B), None
    if chunks > 1:
        partial = torch.empty(B, num_groups, chunks, 2, device=out.device)
        _statistics_kernel[grid](*total, partial, **parts, **tiles, num_warps=warps)
    _group_norm_kernel[grid](
        *(*total, *affine, scale, shift, stream, out, partial),
        0 if scale is None else scale.stride(0),
        0 if shift is None else shift.stride(0),
        **parts,
        **tiles,
        CHUNKS=triton.next_power_of_2(chunks),
        SILU=silu,
        EPS=EPS,
        num_warps=warps,
        maxnreg=MAX_REGISTERS,
    )
    return total.x if stream is None else stream, out


def group_norm(
    x: Tensor | DeferredSum,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    silu: bool = True,
) -> Tensor:
    """GroupNorm [-> FiLM] [-> SiLU].

    Args:
        x: [B, C, H, W], or a DeferredSum of that shape.
        num_groups: divides C.
        weight, bias: [C], the affine of the norm.
        scale, shift: [B, C], both or neither.

    Returns:
        [B, C, H, W] in the dtype of x; channels_last on a GPU.

    Raises:
        ValueError: C is no multiple of num_groups, or only one of scale and shift is given.
    """
    total = as_deferred_sum(x)
    film = _check(total, num_groups, scale, shift)
    if use_triton(*total, weight, bias, scale, shift):
        return _launch(total, num_groups, (weight, bias), film, silu, keep=False)[1]
    return group_norm_reference(total.compute(), num_groups, weight, bias, scale, shift, silu=silu)


def residual_group_norm(
    x: Tensor | DeferredSum, num_groups: int, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum (the new residual stream) and its GroupNorm -> SiLU (the input of the next branch).

    Takes the arguments of group_norm and raises its errors.

    Returns:
        (sum, normed), both [B, C, H, W]; sum is the input tensor itself if there is nothing to add.
    """
    total = as_deferred_sum(x)
    _check(total, num_groups, None, None)
    if use_triton(*total, weight, bias):
        return _launch(total, num_groups, (weight, bias), None, silu=True, keep=not total.has_one_term)
    stream = total.compute()
    return stream, group_norm_reference(stream, num_groups, weight, bias)


def _check(
    total: DeferredSum, num_groups: int, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    if total.shape[1] % num_groups:
        raise ValueError(f"{total.shape[1]} channels do not divide into {num_groups} groups")
    if scale is None or shift is None:
        if scale is not shift:
            raise ValueError("scale and shift go together")
        return None
    return scale, shift
