"""Embedders that both networks share.

Letters: B batch, D width.
"""

import math

import torch
from torch import Tensor, nn


def sinusoidal_embedding(positions: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sines and cosines of geometric frequencies (Vaswani et al. 2017, section 3.5), float32.

    positions: [B], fractional allowed. Returns [B, dim]; an odd dim is filled with a zero.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=positions.device) / half)
    angles = positions.float()[:, None] * frequencies  # [B, half]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return nn.functional.pad(embedding, (0, dim - 2 * half))


class ConditionEmbedder(nn.Module):
    """Timestep and class label to one vector.

    The class table starts at std 0.5: at the usual 0.02 the time signal drowns it and a short training run
    ignores the class (11.5 % instead of 62.7 % class accuracy after 12,800 images).
    """

    def __init__(self, dim: int, num_classes: int, frequency_dim: int = 256):
        super().__init__()
        self.frequency_dim = frequency_dim
        self.time = nn.Sequential(nn.Linear(frequency_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = nn.Embedding(num_classes + 1, dim)  # the last row is the null class of guidance
        nn.init.normal_(self.label.weight, std=0.5)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """t: [B] timesteps on the 0..1000 scale, y: [B] labels. Returns [B, D]."""
        frequencies = sinusoidal_embedding(t, self.frequency_dim)
        return self.time(frequencies.to(self.label.weight.dtype)) + self.label(y)


def check(condition: bool, message: str) -> None:
    """Refuse an impossible architecture at construction, in a sentence that says what to change."""
    if not condition:
        raise ValueError(message)


def check_whole(**sizes: object) -> None:
    """Every size must be a whole number from 1; bool and float do not count, whatever their value."""
    for name, value in sizes.items():
        check(type(value) is int and value >= 1, f"{name} must be a whole number from 1, got {value!r}")
