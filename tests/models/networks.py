"""Helpers for tests of the networks."""

from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def randomized(model: Network, seed: int = 0) -> Network:
    """Noise on every parameter: layers that start at zero would hide what the others do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def inputs(n: int, channels: int, size: int, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [n, C, S, S], fractional t [n] and y [n], the null class among them."""
    x = torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(size))
    return x, torch.linspace(0, 1000, n + 2)[1:-1] + 0.25, (torch.arange(n) + num_classes) % (num_classes + 1)


def silent_parameters(model: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> list[str]:
    """Names of the parameters that no gradient of the output reaches."""
    model.requires_grad_(True)
    model(x, t, y).square().sum().backward()
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
