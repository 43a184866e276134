"""Parameters and FLOPs of a configuration or a checkpoint, part by part, without allocating a single weight."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoint import ModelConfig, build_model, load_config, parameter_count
from models.files import WEIGHTS

# Parts by a pattern for names of leaf modules; the part of other modules is their outermost module.
PARTS = {
    r"blocks\.\d+\.(qkv|proj)$": "attention projections",
    r"blocks\.\d+\.mlp\.": "mlp",
    r"(norm|conv)_out$": "conv_out",
}
PRODUCTS = "attention products"  # q k^T and softmax times v, whose FLOPs belong to no module


def model_info(architecture: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """parameters and FLOPs of one forward row (a multiply-add counts two), in total and by part.

    Raises:
        CheckpointError: arguments that the architecture refuses.
    """
    classes = arguments.get("num_classes", 10)
    if not isinstance(classes, int) or classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {classes!r}")
    return config_info(ModelConfig(architecture, arguments, class_names=[str(i) for i in range(classes)]))


def config_info(config: ModelConfig, architecture: str | None = None) -> dict[str, Any]:
    """model_info of a checkpoint's config; architecture: `package.module:Class` that overrides the config's own."""
    with torch.device("meta"):
        model = build_model(config, architecture)
    flops = flops_by_part(model, config.image_shape)
    parameters = Counter[str]()
    for name, parameter in model.named_parameters():
        parameters[part_of(name.rpartition(".")[0])] += parameter.numel()
    return {
        "parameters": parameter_count(model),
        "flops": flops.total(),
        "parts": {part: (parameters[part], flops[part]) for part in dict.fromkeys([*parameters, *flops])},
    }


def flops_by_part(model: nn.Module, image_shape: tuple[int, int, int]) -> Counter[str]:
    """FLOPs of one row on the meta device."""
    inputs = torch.empty(1, *image_shape, device="meta"), torch.empty(1, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(*inputs, torch.zeros(1, dtype=torch.long, device="meta"))
    counts = counter.get_flop_counts()
    leaves = [name for name, module in model.named_modules() if not any(True for _ in module.children())]
    root = type(model).__name__
    flops = Counter[str]()
    for name in leaves:
        flops[part_of(name)] += sum(counts.get(f"{root}.{name}", {}).values())
    if rest := counter.get_total_flops() - flops.total():
        flops[PRODUCTS] = rest
    return flops


def part_of(name: str) -> str:
    """The part to which the module `name` belongs."""
    for pattern, part in PARTS.items():
        if re.match(pattern, name):
            return part
    return name.partition(".")[0]


def describe(architecture: str, arguments: dict[str, Any]) -> str:
    """model_info as a table to print."""
    return parts_table(model_info(architecture, arguments))


def describe_checkpoint(folder: Path, architecture: str | None = None) -> str:
    """What config.json says, and config_info as a table; the weights are not read.

    Raises:
        CheckpointError: a config that cannot be read, or an architecture that refuses it.
    """
    config = load_config(folder)
    info = config_info(config, architecture)
    channels, height, width = config.image_shape
    how = config.default_sampling
    rows = {
        "checkpoint": str(folder) + ("" if (folder / WEIGHTS).is_file() else f" (without {WEIGHTS})"),
        "architecture": architecture or config.architecture,
        "arguments": json.dumps(config.arguments),
        "images": f"{width}x{height}, {channels} channels",
        "classes": f"{config.num_classes}: {', '.join(config.class_names)}",
        "process": f"{config.schedule} schedule, predicts {config.prediction}",
        "sampling": f"{how['sampler']}, {how['steps']} steps, guidance {how['guidance']:g}",
        "weights": f"sha256 {config.sha256 or 'not recorded'}",
    }
    rows |= {f"training.{name}": value for name, value in config.training.items()}
    lines = [f"{name:24}{value if isinstance(value, str) else json.dumps(value)}" for name, value in rows.items()]
    return "\n".join([*lines, "", parts_table(info)])


def parts_table(info: dict[str, Any]) -> str:
    rows = [*info["parts"].items(), ("total", (info["parameters"], info["flops"]))]
    lines = [f"{'':24}{'parameters':>14}{'MFLOP/row':>12}"]
    lines += [f"{part:24}{parameters:>14,}{flops / 1e6:>12,.2f}" for part, (parameters, flops) in rows]
    return "\n".join(lines)
