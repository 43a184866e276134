"""Tiny checkpoints for tests."""

from pathlib import Path
from typing import Any

import torch

from models.checkpoint import ModelConfig, build_model, save_checkpoint

TINY: dict[str, dict[str, Any]] = {
    "dit": {"image_size": 8, "patch_size": 2, "hidden_dim": 32, "depth": 1, "num_heads": 4},
    "unet": {"image_size": 8, "base_channels": 8, "channel_multipliers": [1, 2], "num_res_blocks": 1},
}
FEW_STEP = {"arguments": TINY["dit"] | {"few_step": True}, "guidance_range": (1.0, 3.0)}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {  # architecture, and what differs from the tiny one
    "dit": ("dit", {}),
    "unet": ("unet", {}),
    "few-step": ("dit", FEW_STEP),
    "odd groups": ("unet", {"arguments": TINY["unet"] | {"base_channels": 18, "image_channels": 1}}),
}
QUALITIES = {"draft": {"steps": 2}, "best": {"steps": 12, "spacing": "uniform"}}
CLASS_NAMES = ["cat", "dog", "0"]  # a name that looks like an index is allowed


def write_checkpoint(folder: Path, architecture: str, **changes: Any) -> Path:
    """A checkpoint whose weights are random everywhere, so that no zero-initialised layer hides a mistake."""
    torch.manual_seed(0)
    values = {"arguments": TINY[architecture], "class_names": CLASS_NAMES, "qualities": QUALITIES} | changes
    config = ModelConfig(architecture, **values)
    model = build_model(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_checkpoint(folder, model, config)
    return folder
