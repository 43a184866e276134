"""Convolutions with square kernels and zero padding as one matrix product, without a copy of the patches.

An output pixel is a row of the product, and the channels of the pixels under the kernel are its columns. A program
reads them where they lie (implicit GEMM: Chetlur et al. 2014, arXiv:1410.0759, section 3). cuDNN takes 4 to 11 us
for a layer of one small image, because few of its programs run. Here the sum over the pixels under the kernel and
their channels is divided among programs as well. Each writes a part in float32, and the kernel that follows adds
the parts up. An H200 then takes 2 to 3 us.

Letters: B batch, C channels in, N channels out, S pixels of an output side, K = pixels of the kernel times C.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.backend import tl, triton, use_triton
from kernels.deferred_sum import DeferredSum

PROGRAMS = 132  # multiprocessors of an H100
ENOUGH = 64  # programs: with as many, a wider tile pays more than another program
MANY = 1024  # programs of 64 pixels: with as many, 128 pixels pay
MOST_PARTS = 9
PARTS_TIMES_PIXELS = 1024  # one program of the norm that follows reads all parts of its image
STEPS_OF_A_PART = 2  # at least


class Tiles(NamedTuple):
    """How a convolution is divided: PIXELS x COLUMNS outputs a program, STEP of K at a time, PARTS of K."""

    PIXELS: int
    COLUMNS: int
    STEP: int
    PARTS: int
    num_warps: int
    num_stages: int


@triton.jit
def _convolution_kernel(
    x,  # [B, H, W, C] in memory (channels_last), like all images here
    weight,  # [N, SIDE, SIDE, C] in memory
    bias,  # [N]
    out,  # [PARTS, B, OUT_H, OUT_W, N]
    pixels,  # B * OUT_H * OUT_W
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    N: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    PARTS: tl.constexpr,
):
    OUT_H: tl.constexpr = (H - 1) // STRIDE + 1
    OUT_W: tl.constexpr = (W - 1) // STRIDE + 1
    K: tl.constexpr = SIDE * SIDE * C
    STEPS: tl.constexpr = ((K + STEP - 1) // STEP + PARTS - 1) // PARTS
    part = tl.program_id(2)
    first = tl.program_id(0) * PIXELS // (OUT_H * OUT_W)  # image; offsets from it fit into 32 bits
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    image = pixel // (OUT_H * OUT_W) - first
    top = (pixel // OUT_W) % OUT_H * STRIDE - SIDE // 2
    left = pixel % OUT_W * STRIDE - SIDE // 2
    x += first.to(tl.int64) * (H * W * C)
    weight_row = column * K

    total = tl.zeros([PIXELS, COLUMNS], tl.float32)
    for step in range(part * STEPS, min(part * STEPS + STEPS, (K + STEP - 1) // STEP)):
        k = step * STEP + tl.arange(0, STEP)
        if C % STEP == 0:  # one pixel of the kernel a step, so its place is a scalar
            under = step // (C // STEP)
            channel = step % (C // STEP) * STEP + tl.arange(0, STEP)
            row, col = top + under // SIDE, left + under % SIDE
            inside = (pixel < pixels) & (row >= 0) & (row < H) & (col >= 0) & (col < W)
            offs = (((image * H + row) * W + col) * C)[:, None] + channel[None, :]
            a = tl.load(x + offs, mask=inside[:, None], other=0.0)
            b = tl.load(weight + weight_row[None, :] + k[:, None], mask=(column < N)[None, :], other=0.0)
        else:
            under, channel = k // C, k % C
            row, col = top[:, None] + (under // SIDE)[None, :], left[:, None] + (under % SIDE)[None, :]
            inside = (pixel < pixels)[:, None] & (k < K)[None, :] & (row >= 0) & (row < H) & (col >= 0) & (col < W)
            offs = ((image[:, None] * H + row) * W + col) * C + channel[None, :]
            a = tl.load(x + offs, mask=inside, other=0.0)
            mask = (k < K)[:, None] & (column < N)[None, :]
            b = tl.load(weight + weight_row[None, :] + k[:, None], mask=mask, other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")

    if part == 0:
        total += tl.load(bias + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    out += (part.to(tl.int64) * pixels + pixel.to(tl.int64))[:, None] * N + column[None, :]
    tl.store(out, total.to(out.dtype.element_ty), mask=(pixel < pixels)[:, None] & (column < N)[None, :])


def tiles(pixels: int, pixels_of_an_image: int, N: int, C: int, side: int, dtype: torch.dtype) -> Tiles:
    """By what an H200 was fastest with (docs/gpu.md); K is divided only while programs are few.

    Args:
        pixels: of all images together.
        pixels_of_an_image: of the output.
        N, C, side: channels out and in, pixels of the kernel's side.
        dtype: of the weights.
    """
    step = next((s for s in (64, 32, 16) if C % s == 0), 32)
    steps = triton.cdiv(side * side * C, step)
    most = min(MOST_PARTS, max(1, PARTS_TIMES_PIXELS // pixels_of_an_image), max(1, steps // STEPS_OF_A_PART))
    tall = min(64, max(16, triton.next_power_of_2(pixels)))
    widest = min(128, max(16, triton.next_power_of_2(N)))
    if dtype == torch.float32:  # tensor cores would round to TF32; larger tiles do not fit into registers
        step, tall, widest = min(step, 32), min(tall, 32), min(widest, 32)
    wide = widest
    while wide > 16 and triton.cdiv(pixels, tall) * triton.cdiv(N, wide) * most < ENOUGH:
        wide //= 2
    programs = triton.cdiv(pixels, tall) * triton.cdiv(N, wide)
    if dtype != torch.float32 and programs >= MANY and wide <= 64:
        tall = 128
    parts = min(most, max(1, PROGRAMS // programs))
    warps = 8 if (tall, wide) == (128, 64) else 4
    return Tiles(tall, wide, step, parts, warps, num_stages=3 if tall * wide >= 64 * 64 else 4)


def _launch(x: Tensor, weight: Tensor, bias: Tensor, stride: int, split: bool) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    weight = weight.contiguous(memory_format=torch.channels_last)
    B, C, H, W = x.shape
    N, side = weight.shape[0], weight.shape[2]
    height, width = (H - 1) // stride + 1, (W - 1) // stride + 1
    chosen = tiles(B * height * width, height * width, N, C, side, x.dtype)
    if not split:
        chosen = chosen._replace(PARTS=1)
    memory = torch.empty(
        (chosen.PARTS * B, N, height, width),
        dtype=x.dtype if chosen.PARTS == 1 else torch.float32,
        device=x.device,
        memory_format=torch.channels_last,
    )
    pixels = B * height * width
    grid = (triton.cdiv(pixels, chosen.PIXELS), triton.cdiv(N, chosen.COLUMNS), chosen.PARTS)
    _convolution_kernel[grid](
        x, weight, bias, memory, pixels, H=H, W=W, C=C, N=N, SIDE=side, STRIDE=stride, **chosen._asdict()
    )
    return memory if chosen.PARTS == 1 else memory.view(chosen.PARTS, B, N, height, width)


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
