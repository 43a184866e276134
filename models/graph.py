"""A network as an OpenVINO graph."""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.checkpoint import CheckpointError, ModelConfig

GRAPH = "graph.xml"


def import_openvino() -> Any:
    """OpenVINO without its telemetry, which would send a report at the import and write into the home folder."""
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]  # as if not installed
    import openvino

    return openvino


def trace(network: nn.Module, config: ModelConfig) -> Any:
    """An openvino.Model of any row count, with the inputs x, t, y and perhaps r and w."""
    openvino = import_openvino()
    shapes = [(-1, *config.image_shape), *[(-1,)] * (4 if config.is_few_step else 2)]
    x, t = torch.zeros(2, *config.image_shape), torch.tensor([500.0, 100.0])
    example = (x, t, torch.zeros(2, dtype=torch.int64), *(t, torch.ones(2)) * config.is_few_step)
    with warnings.catch_warnings(action="ignore"):
        return openvino.convert_model(
            network, example_input=example, input=[openvino.PartialShape(s) for s in shapes]
        )


def write_graph(model: Any, config: ModelConfig, folder: Path) -> None:
    import_openvino().save_model(model, folder / GRAPH, compress_to_fp16=False)


def read_graph(folder: Path, weights: Path) -> Any:
    """Raises CheckpointError: the graph does not fit the weights."""
    try:
        return import_openvino().Core().read_model(folder / GRAPH)
    except RuntimeError as error:
        raise CheckpointError(f"{folder / GRAPH} cannot be read: {error}") from error
