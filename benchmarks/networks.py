"""The networks that are measured: the shipped ones, and those of the default sizes with random weights."""

import torch
from torch import nn

from benchmarks import ROOT
from models.checkpoint import ModelConfig, build_model, load_checkpoint

SHIPPED = ("dit", "unet")
RANDOM_STD = 0.02  # of weights that training would begin as zeros


def shipped_network(name: str) -> tuple[nn.Module, ModelConfig]:
    """One of SHIPPED, on the CPU in float32."""
    return load_checkpoint(ROOT / "checkpoints" / name)


def full_size_network(architecture: str) -> tuple[nn.Module, ModelConfig]:
    """The network of the default size, "dit" or "unet", on the CPU in float32; its weights are always the same.

    No parameter is all zeros: products with zeros draw less power, so the clocks of a device would be higher.
    """
    torch.manual_seed(0)
    config = ModelConfig(architecture, {})
    model = build_model(config)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if not p.any()):
            nn.init.normal_(parameter, std=RANDOM_STD)
    return model.eval().requires_grad_(False), config
