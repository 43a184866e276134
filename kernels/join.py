"""Sums that are left to the next kernel, and the copies of a UNet that cannot be avoided, one launch each.

A convolution's bias is a launch of its own in PyTorch, and so are a residual sum, an upsampling and a
concatenation. What follows most of them is a norm, which reads everything anyway; where no norm follows, `join`
does all of it in one launch.

Letters: B batch, C channels, H x W pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import tl, triton, use_triton

ELEMENTS = 2048  # of a program of 4 warps: 16 a thread


class Sum(NamedTuple):
    """x + x_bias + y + y_bias, not computed yet. x, y: [B, C, H, W]; biases: [C]."""

    x: Tensor
    y: Tensor | None = None
    x_bias: Tensor | None = None
    y_bias: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether x is all there is."""
        return self.y is None and self.x_bias is None and self.y_bias is None

    def compute(self) -> Tensor:
        """In plain torch."""
        total = self.x if self.x_bias is None else self.x + self.x_bias[:, None, None]
        if self.y is not None:
            total = total + self.y
        return total if self.y_bias is None else total + self.y_bias[:, None, None]

    def channels_last(self) -> "Sum":
        """Laid out as the kernels read it; a copy only where it is not so already."""
        lay_out = lambda t: t if t is None else t.contiguous(memory_format=torch.channels_last)
        return self._replace(x=lay_out(self.x), y=lay_out(self.y))


def join_reference(total: Sum, beside: Tensor | None = None, upsample: int = 1) -> Tensor:
    out = total.compute()
    if upsample != 1:
        out = F.interpolate(out, scale_factor=upsample, mode="nearest")
    return out if beside is None else torch.cat([out, beside], dim=1)


@triton.jit
def load_sum(x, y, x_bias, y_bias, at, channel, here, in_channels):
    """A tile of a Sum in float32, 0 where nothing is; any of the last three may be None."""
    total = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
    if x_bias is not None:
        total += tl.load(x_bias + channel, mask=in_channels, other=0.0).to(tl.float32)
    if y is not None:
        total += tl.load(y + at, mask=here, other=0.0).to(tl.float32)
    if y_bias is not None:
        total += tl.load(y_bias + channel, mask=in_channels, other=0.0).to(tl.float32)
    return total


@triton.jit
def _join_kernel(
    x,  # [B, H, W, C] in memory, as all images here
    y,
    x_bias,
    y_bias,
    beside,  # [B, H * UPSAMPLE, W * UPSAMPLE, BESIDE] or None
    out,  # [B, H * UPSAMPLE, W * UPSAMPLE, C + BESIDE]
    pixels,  # of x, of all images
    WIDTH: tl.constexpr,  # of x
    C: tl.constexpr,
    BESIDE: tl.constexpr,
    UPSAMPLE: tl.constexpr,
    PIXELS: tl.constexpr,  # of a program
    CHANNELS: tl.constexpr,
):
    pixel = (tl.program_id(0) * PIXELS + tl.arange(0, PIXELS))[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    here, ours = pixel < pixels, channel < C
    total = load_sum(x, y, x_bias, y_bias, pixel.to(tl.int64) * C + channel, channel, here & ours, ours)
    row, column = pixel // WIDTH, pixel % WIDTH  # a row of the image that all images make up
    theirs = here & (channel >= C) & (channel < C + BESIDE)
    for corner in range(UPSAMPLE * UPSAMPLE):
        down = corner // UPSAMPLE
        to_row, to_column = row * UPSAMPLE + down, column * UPSAMPLE + corner - down * UPSAMPLE
        target = to_row.to(tl.int64) * (WIDTH * UPSAMPLE) + to_column
        value = total
        if beside is not None:
            other = tl.load(beside + target * BESIDE + channel - C, mask=theirs, other=0.0)
            value = tl.where(ours, total, other.to(tl.float32))
        to = out + target * (C + BESIDE) + channel
        tl.store(to, value.to(out.dtype.element_ty), mask=here & (channel < C + BESIDE))


def _launch(total: Sum, beside: Tensor | None, upsample: int) -> Tensor:
    total = total.channels_last()
    B, C, H, W = total.x.shape
    beside = None if beside is None else beside.contiguous(memory_format=torch.channels_last)
    width = C + (0 if beside is None else beside.shape[1])
    out = torch.empty(
        (B, width, H * upsample, W * upsample),
        dtype=total.x.dtype,
        device=total.x.device,
        memory_format=torch.channels_last,
    )
    channels = min(64, triton.next_power_of_2(width))
    pixels, rows = B * H * W, ELEMENTS // channels
    _join_kernel[(triton.cdiv(pixels, rows), triton.cdiv(width, channels))](
        *total,
        beside,
        out,
        pixels,
        WIDTH=W,
        C=C,
        BESIDE=width - C,
        UPSAMPLE=upsample,
        PIXELS=rows,
        CHANNELS=channels,
        num_warps=4,
    )
    return out


def join(total: Sum, beside: Tensor | None = None, upsample: int = 1) -> Tensor:
    """Compute a Sum, repeat its pixels, and put another image beside it.

    Args:
        total: of [B, C, H, W].
        beside: [B, C', H * upsample, W * upsample], goes behind the channels of total.
        upsample: every pixel becomes a square of so many (nearest neighbour).

    Returns:
        [B, C + C', H * upsample, W * upsample], channels_last on a GPU; total.x itself if there is nothing to do.

    Raises:
        ValueError: the images do not fit.
    """
    B, C, H, W = total.x.shape
    if total.y is not None and total.y.shape != total.x.shape:
        raise ValueError(f"x {tuple(total.x.shape)} and y {tuple(total.y.shape)} differ")
    if beside is not None and (beside.shape[0], *beside.shape[2:]) != (B, H * upsample, W * upsample):
        raise ValueError(f"{tuple(beside.shape)} does not fit beside {(B, C, H * upsample, W * upsample)}")
    if total.is_plain and beside is None and upsample == 1:
        return total.x
    launch = use_triton(*total, beside)
    return _launch(total, beside, upsample) if launch else join_reference(total, beside, upsample)
