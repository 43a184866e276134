"""Export checkpoints to OpenVINO, with which a CPU serves them faster, and to ONNX."""

import logging
import warnings
from pathlib import Path

import torch

from models.checkpoint import CheckpointError, load_checkpoint
from models.files import GRAPH, replace_file
from models.graph import INPUTS, OUTPUT, example, reason, write_graph

OPSET = 20  # the first with Gelu
# Of these the exporter warns at every export, and no user can change them: all inputs share the axis, torch calls
# what it has deprecated, and no network here has an operation of torchvision.
AXIS = "# The axis name: rows will not be used"  # a UserWarning
LEAF = r"`isinstance\(treespec, LeafSpec\)` is deprecated"  # a FutureWarning
TORCHVISION = "torchvision is not installed"


def export_graph(folder: Path, architecture: str | None = None) -> Path:
    """Write the OpenVINO graph of a checkpoint into its folder, see models/graph.py; returns the file.

    architecture: `package.module:Class` of a network outside this project.

    Raises:
        CheckpointError: the checkpoint cannot be read, or OpenVINO cannot express the network.
    """
    network, config = load_checkpoint(folder, architecture)
    write_graph(network, config, folder, architecture)
    return folder / GRAPH


def export_onnx(folder: Path, file: Path, architecture: str | None = None) -> Path:
    """Write the network of a checkpoint as ONNX with weights in float32; returns the file.

    Inputs: x [rows, C, H, W] and t [rows] in float32, y [rows] in int64; few-step networks also take r and w [rows]
    in float32. Output: image [rows, C, H, W], which models/sampling.py calls the prediction.

    Raises:
        CheckpointError: the checkpoint cannot be read, or ONNX cannot express the network.
    """
    network, config = load_checkpoint(folder, architecture)
    inputs = example(config)
    rows, names = torch.export.Dim("rows"), INPUTS[: len(inputs)]
    logging.getLogger("torch.onnx._internal.exporter._registration").addFilter(_is_news)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", AXIS, UserWarning)
        warnings.filterwarnings("ignore", LEAF, FutureWarning)
        try:
            program = torch.onnx.export(
                network,
                inputs,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=names,
                output_names=[OUTPUT],
                dynamic_shapes=tuple({0: rows} for _ in inputs),
            )
        except Exception as error:  # whatever a foreign network or the exporter raises
            raise CheckpointError(f"this network cannot be exported to ONNX: {reason(error)}") from error
    assert program is not None  # with dynamo there is always one
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, program.model_proto.SerializeToString())
    return file


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(TORCHVISION)
