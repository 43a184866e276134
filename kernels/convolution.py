"""Convolutions with square kernels and zero padding as one matrix product, without a copy of the patches.

An output pixel is a row of the product, and the channels of the pixels under the kernel are its columns. A program
reads them where they lie (implicit GEMM: Chetlur et al. 2014, arXiv:1410.0759, section 3). cuDNN takes 5 to 11 us
for a layer of one small image, because few of its programs run. Here the sum over the pixels under the kernel and
their channels is divided among programs as well. Each writes a part in float32, and the kernel that follows adds
the parts up. On an H200 the 3 x 3 layers of the shipped UNet then take 2 to 4 us for one image.

Letters: B batch, H x W pixels, C channels in, N channels out, K = pixels of the kernel times C.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.backend import tl, triton, use_triton
from kernels.deferred_sum import DeferredSum

PROGRAMS = 132  # multiprocessors of an H100
ENOUGH = 64  # programs; from as many on, a wider tile is faster than more programs
MANY = 1024  # programs of 64 pixels; from as many on, 128 pixels are faster
PARTS = (9, 4, 2, 1)  # few numbers, because each is another kernel of the norm that follows
STEPS_OF_A_PART = 2  # at least
PARTS_TIMES_PIXELS = 1024  # one program of that norm reads all parts of its image


class Tiles(NamedTuple):
    """How a convolution is divided: PIXELS x COLUMNS outputs a program, STEP of K at a time, K into parts."""

    PIXELS: int
    COLUMNS: int
    STEP: int
    parts: int
    num_warps: int
    num_stages: int


@triton.jit(do_not_specialize=["steps"])
def _convolution_kernel(
    x,  # [B, H, W, C] in memory (channels_last), like all images here
    weight,  # [N, SIDE, SIDE, C] in memory
    bias,  # [N]
    out,  # [parts, B, OUT_H, OUT_W, N]
    pixels,  # B * OUT_H * OUT_W
    N,
    steps,  # of a part
    C: tl.constexpr,  # the loop divides by it; as an argument (with other tiles) it took 1.2 to 1.6 times as long
    H: tl.constexpr,
    W: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    OUT_H: tl.constexpr = (H - 1) // STRIDE + 1
    OUT_W: tl.constexpr = (W - 1) // STRIDE + 1
    K: tl.constexpr = SIDE * SIDE * C
    part = tl.program_id(2)
    first = tl.program_id(0) * PIXELS // (OUT_H * OUT_W)  # image; offsets from it fit into 32 bits
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    image = pixel // (OUT_H * OUT_W) - first
    top = (pixel // OUT_W) % OUT_H * STRIDE - SIDE // 2
    left = pixel % OUT_W * STRIDE - SIDE // 2
    x += first.to(tl.int64) * (H * W * C)
    weight += column[None, :] * K
    in_range, column_mask = pixel < pixels, (column < N)[None, :]

    total = tl.zeros([PIXELS, COLUMNS], tl.float32)
    start, end = part * steps * STEP, min((part + 1) * steps * STEP, K)
    for k in range(start, end, STEP):
        if C % STEP == 0:
            a, b = _under_one_pixel(x, weight, k, image, top, left, in_range, column_mask, H, W, C, SIDE, STEP)
        else:
            a, b = _under_any_pixel(x, weight, k, image, top, left, in_range, column_mask, H, W, C, SIDE, STEP)
        total = tl.dot(a, b, total, input_precision="ieee")

    if part == 0:
        total += tl.load(bias + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    out += (part.to(tl.int64) * pixels + pixel.to(tl.int64))[:, None] * N + column[None, :]
    tl.store(out, total.to(out.dtype.element_ty), mask=in_range[:, None] & column_mask)


@triton.jit
def _under_one_pixel(x, weight, k, image, top, left, in_range, column_mask, H, W, C, SIDE, STEP: tl.constexpr):
    """Operands of a step whose columns lie under one pixel of the kernel, so that its place is a scalar."""
    lane = tl.arange(0, STEP)
    under = k // C
    row, col = top + under // SIDE, left + under % SIDE
    inside = in_range & (row >= 0) & (row < H) & (col >= 0) & (col < W)
    offs = (((image * H + row) * W + col) * C)[:, None] + (k - under * C) + lane[None, :]
    a = tl.load(x + offs, mask=inside[:, None], other=0.0)
    return a, tl.load(weight + k + lane[:, None], mask=column_mask, other=0.0)


@triton.jit
def _under_any_pixel(x, weight, k, image, top, left, in_range, column_mask, H, W, C, SIDE, STEP: tl.constexpr):
    """Operands of a step whose columns may lie under several pixels of the kernel, or behind the last one."""
    lane = k + tl.arange(0, STEP)
    under, lane_mask = lane // C, lane < SIDE * SIDE * C
    row, col = top[:, None] + (under // SIDE)[None, :], left[:, None] + (under % SIDE)[None, :]
    inside = in_range[:, None] & lane_mask[None, :] & (row >= 0) & (row < H) & (col >= 0) & (col < W)
    offs = ((image[:, None] * H + row) * W + col) * C + (lane % C)[None, :]
    a = tl.load(x + offs, mask=inside, other=0.0)
    return a, tl.load(weight + lane[:, None], mask=lane_mask[:, None] & column_mask, other=0.0)


def tiles(pixels: int, pixels_of_an_image: int, N: int, C: int, side: int, dtype: torch.dtype) -> Tiles:
    """By what an H200 was fastest with (docs/gpu.md); K is divided only while programs are few.

    Args:
        pixels: of all images together.
        pixels_of_an_image: of the output.
        N, C, side: channels out and in, pixels of the kernel's side.
        dtype: of the weights.
    """
    # tensor cores would round float32 to TF32; without them, larger tiles do not fit into registers
    half = dtype != torch.float32
    step = next((s for s in (64, 32, 16) if C % s == 0 and (half or s <= 32)), 32)
    steps = triton.cdiv(side * side * C, step)
    most = max(1, min(steps // STEPS_OF_A_PART, PARTS_TIMES_PIXELS // pixels_of_an_image))
    possible = [p for p in PARTS if p <= most and (p - 1) * triton.cdiv(steps, p) <= steps]
    tall = 16 if pixels <= 16 else 64 if half else 32
    wide = min(128 if half else 32, max(16, triton.next_power_of_2(N)))
    while wide > 32 and triton.cdiv(pixels, tall) * triton.cdiv(N, wide) * possible[0] < ENOUGH:
        wide //= 2
    programs = triton.cdiv(pixels, tall) * triton.cdiv(N, wide)
    if half and programs >= MANY and wide <= 64:
        tall = 128
    parts = next(p for p in possible if p == 1 or p * programs <= PROGRAMS)
    warps = 8 if (tall, wide) == (128, 64) else 4
    return Tiles(tall, wide, step, parts, warps, num_stages=3 if tall * wide >= 64 * 64 else 4)


def _launch(x: Tensor, weight: Tensor, bias: Tensor, stride: int, split: bool) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    weight = weight.contiguous(memory_format=torch.channels_last)
    B, C, H, W = x.shape
    N, side = weight.shape[0], weight.shape[2]
    height, width = (H - 1) // stride + 1, (W - 1) // stride + 1
    pixels = B * height * width
    chosen = tiles(pixels, height * width, N, C, side, x.dtype)
    options = {name: value for name, value in chosen._asdict().items() if name != "parts"}
    parts = chosen.parts if split else 1
    out = torch.empty(
        (parts * B, N, height, width),
        dtype=x.dtype if parts == 1 else torch.float32,
        device=x.device,
        memory_format=torch.channels_last,
    )
    grid = triton.cdiv(pixels, chosen.PIXELS), triton.cdiv(N, chosen.COLUMNS), parts
    _convolution_kernel[grid](
        x,
        weight,
        bias,
        out,
        pixels,
        N,
        triton.cdiv(triton.cdiv(side * side * C, chosen.STEP), parts),
        C=C,
        H=H,
        W=W,
        SIDE=side,
        STRIDE=stride,
        **options,
    )
    return out if parts == 1 else out.view(parts, B, N, height, width)


def convolve(conv: nn.Module, x: Tensor, *, split: bool = True) -> DeferredSum:
    """conv(x) as a sum, which may have several parts on a GPU.

    Args:
        conv: an nn.Conv2d with a bias, a square kernel of odd side, zero padding of half of it, equal strides, no
            dilation and one group.
        x: [B, C, H, W].
        split: whether the next kernel can add parts up.

    Returns:
        A sum of [B, N, H', W'].

    Raises:
        ValueError: conv is another kind of convolution.
    """
    weight, bias, stride = _checked(conv)
    if not use_triton(x, weight, bias) or x.dtype != weight.dtype:  # autocast mixes dtypes
        return DeferredSum(F.conv2d(x, weight, bias, stride, weight.shape[2] // 2))
    return DeferredSum(_launch(x, weight, bias, stride, split))


def _checked(conv: nn.Module) -> tuple[Tensor, Tensor, int]:
    """Weight, bias and stride."""
    if isinstance(conv, nn.Conv2d) and conv.bias is not None:
        side, stride = conv.kernel_size[0], conv.stride[0]
        wanted = (side, side), (stride, stride), (side // 2, side // 2), (1, 1), 1, "zeros"
        given = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
        if side % 2 and wanted == given:
            return conv.weight, conv.bias, stride
    raise ValueError(f"conv must be a Conv2d with bias, an odd square kernel and half of it as padding, got {conv}")
