"""A sum that the next kernel computes, and one kernel for the places where no such kernel follows.

PyTorch launches a kernel of its own for a residual addition, for an upsampling and for a concatenation. A
DeferredSum carries the terms of the first instead, and the parts of a convolution (kernels/convolution.py).
GroupNorm reads every element anyway, so it adds them up while it loads. Where no norm follows, one kernel adds them
up and copies, upsamples or concatenates. With all kernels of this package, a step of the UNet with 18 residual
blocks takes 107 launches instead of 301.

Letters: B batch, C channels, H x W pixels, P parts.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import tl, triton, use_triton

ELEMENTS = 2048  # of a program of 4 warps: 16 a thread


class DeferredSum(NamedTuple):
    """x + y, not computed yet.

    x: [B, C, H, W], or [P, B, C, H, W] in float32: the sum of P parts. y: [B, C, H, W].
    """

    x: Tensor
    y: Tensor | None = None

    @property
    def has_one_term(self) -> bool:
        """Whether x is the whole sum."""
        return self.y is None and self.parts == 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B, C, H, W."""
        B, C, H, W = self.x.shape[-4:]
        return B, C, H, W

    @property
    def parts(self) -> int:
        """P; 1 if x has four axes."""
        return self.x.shape[0] if self.x.dim() == 5 else 1

    def compute(self) -> Tensor:
        """The sum in plain torch, [B, C, H, W]."""
        if self.parts == 1:
            return self.x if self.y is None else self.x + self.y
        total = self.x.sum(0)
        return total if self.y is None else (total + self.y).to(self.y.dtype)

    def channels_last(self) -> "DeferredSum":
        """The same sum with x and y in channels_last, which the kernels read; other layouts are copied."""
        x, y = (t if t is None or t.dim() == 5 else t.contiguous(memory_format=torch.channels_last) for t in self)
        assert x is not None
        return DeferredSum(x, y)  # parts come from convolve, which writes channels_last


def as_deferred_sum(x: Tensor | DeferredSum) -> DeferredSum:
    """x itself, or a sum of one term.

    Raises:
        ValueError: the shapes of the two terms differ.
    """
    total = x if isinstance(x, DeferredSum) else DeferredSum(x)
    if total.y is not None and total.y.shape != total.shape:
        raise ValueError(f"x {tuple(total.x.shape)} and y {tuple(total.y.shape)} differ")
    return total


def concat_skip_reference(x: Tensor | DeferredSum, skip: Tensor) -> Tensor:
    return torch.cat([as_deferred_sum(x).compute(), skip], dim=1)


def upsample2x_reference(x: Tensor | DeferredSum) -> Tensor:
    return F.interpolate(as_deferred_sum(x).compute(), scale_factor=2, mode="nearest")


@triton.jit
def load_sum(x, y, offs, mask, part_stride, PARTS: tl.constexpr):
    """A tile of a DeferredSum in float32, 0 where masked out; y may be None."""
    total = tl.load(x + offs, mask=mask, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):  # pyright: ignore[reportGeneralTypeIssues]
        total += tl.load(x + part * part_stride + offs, mask=mask, other=0.0).to(tl.float32)
    if y is not None:
        total += tl.load(y + offs, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["W"])
def _deferred_sum_kernel(
    x,  # [PARTS, B, H, W, C] in memory (channels_last), like all images here
    y,  # [B, H, W, C] or None
    skip,  # [B, H * UPSAMPLE, W * UPSAMPLE, SKIP] or None
    out,  # [B, H * UPSAMPLE, W * UPSAMPLE, C + skip_channels]
    pixels,  # B * H * W
    part_stride,
    W,
    C,
    skip_channels,
    PARTS: tl.constexpr,
    UPSAMPLE: tl.constexpr,  # 1 or 2: a pixel becomes a square of that many
    PIXELS: tl.constexpr,  # of a program
    CHANNELS: tl.constexpr,
):
    pixel = (tl.program_id(0) * PIXELS + tl.arange(0, PIXELS))[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    pixel_mask, sum_mask = pixel < pixels, channel < C
    offs = pixel.to(tl.int64) * C + channel
    total = load_sum(x, y, offs, pixel_mask & sum_mask, part_stride, PARTS)
    row, column = pixel // W, pixel % W  # row of the B images stacked on each other
    skip_mask = pixel_mask & (channel >= C) & (channel < C + skip_channels)
    for corner in range(UPSAMPLE * UPSAMPLE):
        down = corner // UPSAMPLE
        out_row, out_column = row * UPSAMPLE + down, column * UPSAMPLE + corner - down * UPSAMPLE
        out_pixel = out_row.to(tl.int64) * (W * UPSAMPLE) + out_column
        value = total
        if skip is not None:
            copied = tl.load(skip + out_pixel * skip_channels + channel - C, mask=skip_mask, other=0.0)
            value = tl.where(sum_mask, total, copied.to(tl.float32))
        out_ptrs = out + out_pixel * (C + skip_channels) + channel
        tl.store(out_ptrs, value.to(out.dtype.element_ty), mask=pixel_mask & (channel < C + skip_channels))


def _launch(total: DeferredSum, skip: Tensor | None = None, upsample: int = 1) -> Tensor:
    total = total.channels_last()
    B, C, H, W = total.shape
    dtype = next((t.dtype for t in (total.y, skip) if t is not None), total.x.dtype)  # parts are in float32
    skip = None if skip is None else skip.contiguous(memory_format=torch.channels_last)
    width = C + (0 if skip is None else skip.shape[1])
    out = torch.empty(
        (B, width, H * upsample, W * upsample),
        dtype=dtype,
        device=total.x.device,
        memory_format=torch.channels_last,
    )
    channels = min(64, triton.next_power_of_2(width))
    pixels, rows = B * H * W, ELEMENTS // channels
    _deferred_sum_kernel[(triton.cdiv(pixels, rows), triton.cdiv(width, channels))](
        *total,
        skip,
        out,
        pixels,
        pixels * C,
        W,
        C,
        width - C,
        PARTS=total.parts,
        UPSAMPLE=upsample,
        PIXELS=rows,
        CHANNELS=channels,
        num_warps=4,
    )
    return out


def materialize(x: Tensor | DeferredSum) -> Tensor:
    """The sum as a tensor.

    Args:
        x: of [B, C, H, W].

    Returns:
        [B, C, H, W], channels_last on a GPU; the tensor itself if there is nothing to add.

    Raises:
        ValueError: the shapes of the two terms differ.
    """
    total = as_deferred_sum(x)
    if total.has_one_term:
        return total.x
    return _launch(total) if use_triton(*total) else total.compute()


def concat_skip(x: Tensor | DeferredSum, skip: Tensor) -> Tensor:
    """The sum, and the channels of a skip connection after its own.

    Args:
        x: of [B, C, H, W].
        skip: [B, C', H, W].

    Returns:
        [B, C + C', H, W], channels_last on a GPU.

    Raises:
        ValueError: the shapes do not fit.
    """
    total = as_deferred_sum(x)
    B, C, H, W = total.shape
    if (skip.shape[0], *skip.shape[2:]) != (B, H, W):
        raise ValueError(f"skip must be [{B}, any, {H}, {W}] to go with x {(B, C, H, W)}, got {tuple(skip.shape)}")
    return _launch(total, skip) if use_triton(*total, skip) else concat_skip_reference(total, skip)


def upsample2x(x: Tensor | DeferredSum) -> Tensor:
    """The sum at twice the resolution, by nearest neighbour.

    Args:
        x: of [B, C, H, W].

    Returns:
        [B, C, 2 * H, 2 * W], channels_last on a GPU.

    Raises:
        ValueError: the shapes of the two terms differ.
    """
    total = as_deferred_sum(x)
    return _launch(total, upsample=2) if use_triton(*total) else upsample2x_reference(total)
