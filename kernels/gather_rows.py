"""The network's input of a step: one row an evaluation, by slot, in the network's dtype; new images start here.

Letters: S slots, R forward rows, C x H x W the image, E = C * H * W.
"""

import torch
from torch import Tensor

from kernels.backend import image_layout, tl, triton, use_triton
from kernels.philox import normal, normal_noise
from kernels.vector import store_wide

SLOT, SEED, FRESH = range(3)  # columns of the block that the host writes each step
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
    x,  # [S, E], the elements in the order in which they lie in memory
    rows,  # [R, 3] int64
    out,  # [R, E], the same order
    E: tl.constexpr,
    C: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOT: tl.constexpr,
    SEED: tl.constexpr,
    FRESH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = place < E
    latent = x + tl.load(rows + row * COLUMNS + SLOT) * E + place
    if tl.load(rows + row * COLUMNS + FRESH) != 0:
        element = (place % C) * (E // C) + place // C if CHANNELS_LAST else place
        value = normal_noise(tl.load(rows + row * COLUMNS + SEED), tl.full((), 0, tl.int32), element)
        tl.store(latent, value, mask=here)  # both rows of a guided image write the same numbers
    else:
        value = tl.load(latent, mask=here, other=0.0)
    store_wide(out + row * E, tl.program_id(1) * BLOCK, E, value, BLOCK)


def _launch(x: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    C, E = x.shape[1], x[0].numel()
    layout = image_layout(x)
    out = torch.empty(len(rows), *x.shape[1:], dtype=dtype, device=x.device, memory_format=layout)
    _gather_rows_kernel[(len(rows), triton.cdiv(E, BLOCK))](
        x,
        rows.contiguous(),
        out,
        E=E,
        C=C,
        CHANNELS_LAST=layout == torch.channels_last,
        COLUMNS=NUM_ROW_INDICES,
        SLOT=SLOT,
        SEED=SEED,
        FRESH=FRESH,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return out


def gather_rows(x: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Collect the rows of a forward.

    Args:
        x: [S, C, H, W] float32 latents by slot, contiguous or channels_last. Slots of fresh rows are overwritten
            with the noise of step 0 of their seed.
        rows: [R, 3] int64: slot, seed, fresh (0 or 1). Rows that share a slot agree in the rest.
        dtype: of the network.

    Returns:
        [R, C, H, W] in dtype and in the layout of x.

    Raises:
        ValueError: the block has the wrong width, or x is not float32 or no whole tensor.
    """
    if rows.shape[1] != NUM_ROW_INDICES:
        raise ValueError(f"rows must be [R, {NUM_ROW_INDICES}], got {tuple(rows.shape)}")
    if x.dtype != torch.float32:
        raise ValueError(f"latents must be float32, got {x.dtype}")
    return _launch(x, rows, dtype) if use_triton(x) else gather_rows_reference(x, rows, dtype)
