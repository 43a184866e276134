"""The start of a run: initial weights from a checkpoint, and the summary that is logged."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from models.checkpoint import CheckpointError, ModelConfig, load_checkpoint, parameter_count
from models.files import WEIGHTS, sha256_of
from training.config import TrainConfig
from training.data import Data
from training.processes import Processes

LABELS = "condition.label.weight"  # [K + 1, D]: a row a class, and the null class


def load_initial_weights(model: nn.Module, config: ModelConfig, folder: Path, *, same_classes: bool) -> None:
    """Copy the weights of the checkpoint in `folder` into a network that was built from config.

    Parameters that only few-step networks have stay zero if the checkpoint lacks them. Of other classes, those with
    a name of the checkpoint's keep their embedding, and the rest keeps the one that it was built with.

    Args:
        same_classes: whether other classes are refused.

    Raises:
        CheckpointError: a checkpoint that cannot be read, or one of another network, or other classes where these
            are refused or the network has no table of embeddings.
    """
    source, known = load_checkpoint(folder)
    state = source.state_dict()
    others = known.class_names != config.class_names and not same_classes and LABELS in state
    tuned = replace(config, arguments={k: v for k, v in config.arguments.items() if k != "few_step"})
    for name in ("architecture", "arguments", "schedule", "prediction", *(() if others else ("class_names",))):
        had, has = getattr(known, name), getattr(config, name)
        if had not in (has, getattr(tuned, name)):
            raise CheckpointError(
                f"init_from: {name} of {folder} is {json.dumps(had)}, of this run {json.dumps(has)}"
            )
    if others:
        state[LABELS] = table_of(model.state_dict()[LABELS], state[LABELS], config.class_names, known.class_names)
    model.load_state_dict(state, strict=known.arguments == config.arguments)


def table_of(fresh: Tensor, trained: Tensor, names: list[str], known: list[str]) -> Tensor:
    """The embeddings `fresh` of names, with those that are `trained` for known ones, and for the null class."""
    table = fresh.clone()
    table[-1] = trained[-1]
    for i, name in enumerate(names):
        if name in known:
            table[i] = trained[known.index(name)]
    return table


def initial_sha256(folder: Path) -> str:
    """SHA-256 of the weights file in a checkpoint's folder.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        return sha256_of(folder / WEIGHTS)
    except OSError as error:
        raise CheckpointError(f"init_from: {folder / WEIGHTS} cannot be read: {error.strerror}") from error


def describe_start(config: TrainConfig, model: nn.Module, data: Data, world: Processes, step: int) -> str:
    """A summary of the run for its log; config.autocast must not be None."""
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
    source = f"{config.data} {config.data_path}" if config.data_path else config.data
    height, width = data.train.images.shape[2:]
    rows = {
        "model": f"{config.model}, {parameter_count(model):,} parameters, arguments {json.dumps(config.arguments)}",
        "data": f"{source}, {len(data.train):,} pictures of {width}x{height} pixels",
        "classes": f"{len(data.class_names)}: {', '.join(data.class_names)}",
        "held out": held_out(data),
        "left out": data.left_out,
        "device": f"{device}, threads: {torch.get_num_threads()}, processes: {world.size}, products in "
        + ("bfloat16" if config.autocast else "float32"),
        "start": f"weights of {config.init_from}" if config.init_from and not step else "",
        "steps": f"{step:,} of {config.steps:,} done, {config.batch_size} pictures in each",
        "out": f"{config.out}, a state every {config.checkpoint_every:,} steps",
    }
    return "\n".join(f"{name:9}{text}" for name, text in rows.items() if text)


def held_out(data: Data) -> str:
    parts = {"to train the classifier of `evaluate`": len(data.judge), "to measure with": len(data.test)}
    return ", ".join(f"{count:,} pictures {what}" for what, count in parts.items() if count)
