"""The network's input of a step: one row per model evaluation, gathered by slot and cast to the network's dtype.

A row is one model evaluation: an image with guidance takes two rows a step, one without takes one. A slot is the
place of an image in the state tensors. An image at its first step gets its initial noise here.

Letters: R rows; the image is C x H x W, and E = C * H * W are its elements.
"""

import math

import torch
from torch import Tensor

from kernels.backend import image_layout, tl, triton, use_triton
from kernels.philox import normal, normal_noise
from kernels.wide_access import store_wide

# Columns of the block `rows`, which the host writes each step.
SLOT, SEED, FRESH = (tl.constexpr(column) for column in range(3))
NUM_ROW_INDICES = 3
BLOCK = 1024  # elements of a program of 4 warps


def gather_rows_reference(x: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    slots, seeds, fresh = rows.unbind(1)
    new = fresh.nonzero().flatten()
    if len(new):
        noise = normal(seeds[new], torch.zeros_like(new), x[0].numel())
        x[slots[new]] = noise.view(-1, *x.shape[1:])
    return x[slots].to(dtype, memory_format=image_layout(x))


@triton.jit
def _gather_rows_kernel(
    x,  # [slots, E], the elements in memory order
    rows,  # [R, 3] int64
    out,  # [R, E], in the order of x
    E: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    NUM_ROW_INDICES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < E
    latent_ptrs = x + tl.load(rows + row * NUM_ROW_INDICES + SLOT) * E + offs
    if tl.load(rows + row * NUM_ROW_INDICES + FRESH) != 0:
        element = (offs % NUM_CHANNELS) * (E // NUM_CHANNELS) + offs // NUM_CHANNELS if CHANNELS_LAST else offs
        value = normal_noise(tl.load(rows + row * NUM_ROW_INDICES + SEED), tl.full((), 0, tl.int32), element)
        tl.store(latent_ptrs, value, mask=mask)  # both rows of a guided image write the same numbers
    else:
        value = tl.load(latent_ptrs, mask=mask, other=0.0)
    store_wide(out + row * E, tl.program_id(1) * BLOCK, E, value, BLOCK)


def _launch(x: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    E = x[0].numel()
    layout = image_layout(x)
    out = torch.empty(len(rows), *x.shape[1:], dtype=dtype, device=x.device, memory_format=layout)
    _gather_rows_kernel[(len(rows), triton.cdiv(E, BLOCK))](
        x,
        rows.contiguous(),
        out,
        E=E,
        NUM_CHANNELS=x.shape[1],
        CHANNELS_LAST=layout == torch.channels_last,
        NUM_ROW_INDICES=NUM_ROW_INDICES,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return out


def gather_rows(x: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Collect the input of a forward.

    Args:
        x: [slots, C, H, W] float32 latents, contiguous or channels_last. The slots of fresh rows are overwritten
            with the noise of step 0 of their seed.
        rows: [R, 3] int64: slot, seed, fresh (0 or 1). Rows of the same slot must have the same seed and fresh.
        dtype: of the network.

    Returns:
        [R, C, H, W] in dtype and in the layout of x.

    Raises:
        ValueError: rows has another width than 3, x is not float32, or x is neither contiguous nor channels_last.
    """
    if rows.shape[1] != NUM_ROW_INDICES:
        raise ValueError(f"rows must be [R, {NUM_ROW_INDICES}], got {tuple(rows.shape)}")
    if x.dtype != torch.float32:
        raise ValueError(f"latents must be float32, got {x.dtype}")
    return _launch(x, rows, dtype) if use_triton(x) else gather_rows_reference(x, rows, dtype)


def initial_noise(seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The noise of step 0 of these seeds, [n, *shape] float32.

    On a GPU the kernel above draws it in one launch; the operations of normal() are about 100.
    """
    if not use_triton(seeds):
        return normal(seeds, torch.zeros_like(seeds), math.prod(shape)).view(-1, *shape)
    noise = torch.empty(len(seeds), *shape, device=seeds.device)
    rows = torch.stack([torch.arange(len(seeds), device=seeds.device), seeds, torch.ones_like(seeds)], dim=1)
    gather_rows(noise, rows, torch.float32)
    return noise
