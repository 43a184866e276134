"""Random numbers of a training step, which depend on the seed and the step alone, so that runs can resume."""

import torch
from torch import Tensor


def batch_indices(seed: int, step: int, batch_size: int, length: int) -> Tensor:
    """Indices of a step's images in an endless sequence of shuffled epochs: [batch_size] int64."""
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = {int(epoch) for epoch in positions // length}
    orders = {e: torch.randperm(length, generator=torch.Generator().manual_seed(mix(seed, e, 1))) for e in epochs}
    return torch.stack([orders[p // length][p % length] for p in positions.tolist()])


def mix(*numbers: int) -> int:
    """One seed from several, stable over processes and Python versions."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) & (2**63 - 1)
    return mixed
