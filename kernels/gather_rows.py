"""The network's input of a step: latents by slot, cast and laid out, with initial noise where an image is new."""

import torch
from torch import Tensor

from kernels.philox import normal

SLOT, SEED, FRESH = range(3)
NUM_ROW_INDICES = 3


def gather_rows_reference(
    x: Tensor, rows: Tensor, dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    slots, seeds, fresh = rows.unbind(1)
    new = fresh.nonzero().flatten()
    if len(new):
        noise = normal(seeds[new], torch.zeros_like(new), x[0].numel())
        x[slots[new]] = noise.view(-1, *x.shape[1:])
    return x[slots].to(dtype, memory_format=memory_format)


def gather_rows(
    x: Tensor, rows: Tensor, dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    return gather_rows_reference(x, rows, dtype, memory_format)
