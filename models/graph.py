"""The network of a checkpoint as an OpenVINO graph, which a CPU runs faster than torch.

graph.xml and graph.bin lie beside the weights and hold none of them: each weight is an input of the stored graph,
which read_graph replaces by the tensor of that name in model.safetensors. One graph serves all weights of a layout.

Where a graph is traced or read, OpenVINO must be installed (extra `cpu`); nothing else here imports it.
"""

import hashlib
import importlib
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.checkpoint import CheckpointError, ModelConfig, load_config, misfit, unwrap
from models.files import CONSTANTS, GRAPH, replace_file

if TYPE_CHECKING:
    import openvino

INPUTS, OUTPUT = ("x", "t", "y", "r", "w"), "image"
ROWS = 3  # of the example: neither 1, which broadcasts, nor a size of an image
TOLERANCE = 1e-3  # of the largest pixel; float32 sums in another order are 2e-6 apart
FORMAT = 1  # raise it when the same config describes another network than before
LAYOUT, DIGEST, WEIGHTS_INFO = "layout", "constants", "weights"  # facts in graph.xml about what it fits


def import_openvino() -> Any:
    """OpenVINO, without the report that it sends over the network at its import, or ImportError.

    The report needs the package openvino_telemetry. OpenVINO runs without, and this module makes it look absent.
    """
    cast(dict[str, Any], sys.modules).setdefault("openvino_telemetry", None)
    return importlib.import_module("openvino")


@cache
def core() -> Any:
    """OpenVINO's Core, one for the whole process.

    On processors with AMX each Core gives its thread a stack for signals, and restores the one before when it goes.
    Of two that go in another order than they came, the second restores a stack that is gone: the next signal would
    then end the process by SIGSEGV (OpenVINO 2026.4.1).
    """
    return import_openvino().Core()


class _Opened(nn.Module):
    """A network whose weights are inputs, after those of its forward: so no conversion merges them with others."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.names = list(network.state_dict())
        self.network = (network,)  # a tuple hides its weights from the trace

    def forward(self, *inputs: Tensor) -> Tensor:
        (network,), given = self.network, len(inputs) - len(self.names)
        own = [_exchange(network, *pair) for pair in zip(self.names, inputs[given:], strict=True)]
        try:
            return network(*inputs[:given])
        finally:
            for name, tensor in zip(self.names, own, strict=True):
                _exchange(network, name, tensor)


def _exchange(network: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Put a tensor in the place of a weight; torch.func.functional_call refuses to do that in a trace."""
    owner, _, leaf = name.rpartition(".")
    module = network.get_submodule(owner)
    place = cast(dict[str, Tensor], module._parameters if leaf in module._parameters else module._buffers)
    old, place[leaf] = place[leaf], tensor
    return old


def trace(network: nn.Module, config: ModelConfig) -> "openvino.Model":
    """The graph of a network that is in float32 and on the CPU. Meanwhile, no other thread may run the network.

    Returns:
        Inputs x [B, C, H, W] and t [B] in float32, y [B] in int64, and of a few_step network r and w [B]; output
        image [B, C, H, W]. B is any number of rows. Each weight is a Constant that has the name of the parameter.

    Raises:
        CheckpointError: OpenVINO cannot express the network, or its graph computes something else.
    """
    return _traced(network, config)[1]


def write_graph(network: nn.Module, config: ModelConfig, folder: Path, architecture: str | None = None) -> None:
    """Write the network's graph.xml and graph.bin into the folder of its weights. It is traced as in trace.

    Args:
        architecture: `package.module:Class` where the operator overrides the config's own.

    Raises:
        CheckpointError: as trace.
    """
    model = _traced(network, config)[0]
    model.set_rt_info(_layout(config, architecture), LAYOUT)
    _, constants = _serialize(model)
    model.set_rt_info(_digest(constants), DIGEST)
    xml, constants = _serialize(model)
    replace_file(folder / CONSTANTS, constants)
    replace_file(folder / GRAPH, xml)


def read_graph(folder: Path, weights: Path, architecture: str | None = None) -> "openvino.Model":
    """The graph that lies in a folder with the weights of a file, as trace returns it.

    Args:
        weights: a safetensors file in float16, bfloat16 or float32.
        architecture: as write_graph takes it.

    Raises:
        CheckpointError: there is no graph, or it is one of another network; the message says what makes it anew.
    """
    remedy = f"make it anew by `run.py export {folder}`"
    try:
        xml, constants = (folder / GRAPH).read_bytes(), (folder / CONSTANTS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {remedy} ({error.strerror})") from error
    facts = {LAYOUT: _layout(load_config(folder), architecture), DIGEST: _digest(constants)}
    if not all(f'<{name} value="{value}" />'.encode() in xml for name, value in facts.items()):
        raise CheckpointError(f"{folder / GRAPH} is not of this network: {remedy}")
    try:
        model = core().read_model(xml, constants)
        _insert_weights(model, load_file(weights))
        _spread_group_norms(model)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder / GRAPH} does not fit {weights}: {remedy} ({reason(error)})") from error
    return model


def _layout(config: ModelConfig, architecture: str | None) -> str:
    """SHA-256 of all that decides what the network computes, except for its weights."""
    named = [architecture or config.architecture, config.arguments, config.image_shape]
    facts = [FORMAT, *named, config.num_classes, config.is_few_step]
    return _digest(json.dumps(facts, sort_keys=True).encode())


def example(config: ModelConfig) -> tuple[Tensor, ...]:
    """ROWS rows of what a network of this config takes: x [B, C, H, W], t [B] and y [B], some also r and w [B]."""
    x = torch.randn(ROWS, *config.image_shape, generator=torch.Generator().manual_seed(0))
    t, y = torch.linspace(900.0, 100.0, ROWS), torch.arange(ROWS) % config.num_classes
    return (x, t, y, t / 2, torch.linspace(1.0, 2.0, ROWS)) if config.is_few_step else (x, t, y)


def reason(error: BaseException) -> str:
    """The first cause of an exporter's error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def _spread_group_norms(model: "openvino.Model") -> None:
    """Replace each GroupNormalization by operations that OpenVINO runs faster on a CPU.

    Its own needs channels in another order in memory than convolutions leave them. Reductions over pixels take any
    order. So they come first, channel by channel, and a small convolution then averages the channels of a group.
    One thread computes 385 instead of 297 rows a second of the shipped UNet, at 8 rows in bfloat16.
    """
    ov = import_openvino()
    op, pixels, ones = ov.opset13, [2, 3], [1, 1]
    for node in model.get_ordered_ops():
        if node.get_type_name() != "GroupNormalization" or len(node.get_output_partial_shape(0)) != 4:
            continue
        x, weight, bias = node.input_values()  # [B, C, H, W], [C], [C]
        C, H, W = (size.get_length() for size in list(x.get_partial_shape())[1:])
        G, eps = node.get_attributes()["num_groups"], np.float32(node.get_attributes()["epsilon"])
        average = np.full((G, C // G, C // G, 1, 1), G / C, np.float32)
        mean = op.group_convolution(op.reduce_mean(x, pixels, True), average, ones, [0, 0], [0, 0], ones)
        centred = op.subtract(x, mean)  # mean: [B, C, 1, 1], one value a group
        norm = op.reduce_l2(centred, pixels, True)
        variance = op.group_convolution(op.multiply(norm, norm), average / (H * W), ones, [0, 0], [0, 0], ones)
        weight, bias = (op.reshape(each, [1, C, 1, 1], False) for each in (weight, bias))
        scale = op.multiply(op.power(op.add(variance, eps), np.float32(-0.5)), weight)  # [B, C, 1, 1]
        ov.utils.replace_node(node, op.add(op.multiply(centred, scale), bias))
    model.validate_nodes_and_infer_types()


def _traced(network: nn.Module, config: ModelConfig) -> tuple["openvino.Model", "openvino.Model"]:
    """The graph as it is stored, and as it runs."""
    try:
        stored = _convert(network, config)
        model = stored.clone()
        _insert_weights(model, network.state_dict())
        _spread_group_norms(model)
        _check_same(model, network, config)
    except Exception as error:  # whatever a foreign network or the conversion raises
        raise CheckpointError(f"this network cannot be exported to OpenVINO: {reason(error)}") from error
    return stored, model


@contextmanager
def _own_logging() -> Iterator[None]:
    """A conversion that fails leaves the root logger at ERROR, and later warnings of the program unwritten."""
    root = logging.getLogger()
    level, filters, handlers = root.level, root.filters[:], root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters, root.handlers = filters, handlers


def _convert(network: nn.Module, config: ModelConfig) -> "openvino.Model":
    """The graph as OpenVINO makes it of torch's trace. Its inputs are those of the network, then its weights."""
    ov, inputs, weights = import_openvino(), example(config), network.state_dict()
    if taken := weights.keys() & {*INPUTS, OUTPUT}:
        raise ValueError(f"its weight {min(taken)} has the name of an input or output")
    shapes = [[-1, *tensor.shape[1:]] for tensor in inputs] + [list(tensor.shape) for tensor in weights.values()]
    with warnings.catch_warnings(), torch.no_grad(), _own_logging():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated, and checks of shapes are not recorded
        given = (*inputs, *weights.values())
        model = ov.convert_model(_Opened(network), example_input=given, input=list(map(ov.PartialShape, shapes)))
    names = [*INPUTS[: len(inputs)], *weights, OUTPUT]
    for name, port in zip(names, (*model.inputs, *model.outputs), strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
    model.set_rt_info(json.dumps({name: list(tensor.shape) for name, tensor in weights.items()}), WEIGHTS_INFO)
    return model


def _check_same(model: "openvino.Model", network: nn.Module, config: ModelConfig) -> None:
    """Compare graph and network: a trace loses a loop or an `if` that depends on numbers."""
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for rows in (ROWS, 2, 1):
        inputs = [tensor[:rows] for tensor in example(config)]
        with torch.no_grad():
            wanted = network(*inputs)
        got = torch.from_numpy(compiled([tensor.numpy() for tensor in inputs])[0])
        allowed = TOLERANCE * wanted.abs().max().clamp(min=1)
        if got.shape != wanted.shape or not (got - wanted).abs().max() <= allowed:
            raise ValueError(f"its graph computes other numbers than the network at {rows} rows")


def _insert_weights(model: "openvino.Model", weights: Mapping[str, Tensor]) -> None:
    """Put the values of the weights where they are named, in float32.

    Raises:
        ValueError: which weights are missing, unknown or of another size.
    """
    ov = import_openvino()
    shapes = json.loads(model.get_rt_info(WEIGHTS_INFO).astype(str))
    expected = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    weights = unwrap(dict(weights), expected)
    if wrong := misfit(weights, expected):
        raise ValueError(wrong)
    nodes = {node.get_friendly_name(): node for node in model.get_parameters()}
    for name, tensor in weights.items():
        half = tensor.dtype == torch.float16  # OpenVINO keeps what it is given beside what it makes of it
        array = (tensor.float() if tensor.is_floating_point() and not half else tensor).numpy(force=True)
        value = constant = ov.opset13.constant(array, ov.Type.f16 if half else nodes[name].get_element_type())
        constant.set_friendly_name(name)
        if half:
            value = ov.opset13.convert(constant, "f32")
            value.get_rt_info()["decompression_0"] = ""  # so that it is not carried out in advance
        ov.utils.replace_node(nodes[name], value)
        model.remove_parameter(nodes[name])
    model.validate_nodes_and_infer_types()


def _serialize(model: "openvino.Model") -> tuple[bytes, bytes]:
    """Both files of a model."""
    with tempfile.TemporaryDirectory() as folder:
        xml, constants = Path(folder, GRAPH), Path(folder, CONSTANTS)
        import_openvino().serialize(model, xml, constants)
        return xml.read_bytes(), constants.read_bytes()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
