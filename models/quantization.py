"""int8 products for OpenVINO on a CPU: which ones, by which scales, and where those are kept.

Activations get 8 bits by ranges that training/quantize.py has measured over all noise levels; they stand in
ranges.json beside the weights. Weights get 8 bits by the largest value of each output channel, when a graph is
loaded, so no second copy of them is stored. OpenVINO then multiplies integers.

Two sides of a concatenation differ in scale, ten times and more in the shipped UNet: what comes down is large where
the skip is small. One scale for both leaves the skip few of the 256 levels, so each side has its own. The factor
between them goes into the weights, W x = (W s) (x / s), and the convolution stays one.

Letters: O output channels, I input channels.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.checkpoint import CheckpointError
from models.files import replace_file

if TYPE_CHECKING:  # it is an extra, and slow to import
    import openvino

RANGES = "ranges.json"
LEVELS, LARGEST = 256, 127  # values of 8 bits; the largest signed one
LARGEST_RANGE = 1e38  # float32 ends soon behind it
PRODUCTS = ("Convolution", "MatMul")

Range = tuple[float, float]
Ranges = dict[str, list[Range]]  # by the name of a weight: of each part of what it multiplies


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product with a weight, which is to run in int8."""

    node: "openvino.Node"
    name: str  # of the weight

    @property
    def parts(self) -> "list[openvino.Output]":
        """What the weight multiplies: one tensor, or several that are concatenated for a convolution."""
        source = self.node.input_value(0)
        together = source.get_node()
        if self.node.get_type_name() != "Convolution" or together.get_type_name() != "Concat":
            return [source]
        return [together.input_value(index) for index in range(together.get_input_size())]


def products(model: "openvino.Model") -> list[Product]:
    """The products of a network that int8 serves.

    The first products after the noisy image and the last ones before the output stay in float: they decide over
    single grey levels and take 2 % of the time. So does the conditioning, which never sees the image: it has one
    row an image, where the others have a row a pixel or token.
    """
    weighted = {node.get_name(): name for node in model.get_ordered_ops() if (name := _weight_name(node))}
    start, end = model.input("x").get_node(), model.get_results()[0]
    see_image = _reachable(start, _consumers, ())
    first, last = _reachable(start, _consumers, weighted), _reachable(end, _suppliers, weighted)
    wanted = (weighted.keys() & see_image) - first - last
    return [
        Product(node, weighted[node.get_name()]) for node in model.get_ordered_ops() if node.get_name() in wanted
    ]


def _weight_name(node: "openvino.Node") -> str:
    """The name of the weight by which a node multiplies; empty where it is no such product."""
    constant = _constant(node) if node.get_type_name() in PRODUCTS else None
    return constant.get_friendly_name() if constant else ""


def _constant(product: "openvino.Node") -> Any:
    """Of the weight, which stored graphs convert from float16; None where two activations are multiplied."""
    node = product.input_value(1).get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def _consumers(node: "openvino.Node") -> "list[openvino.Node]":
    return [target.get_node() for output in node.outputs() for target in output.get_target_inputs()]


def _suppliers(node: "openvino.Node") -> "list[openvino.Node]":
    return [node.input_value(index).get_node() for index in range(node.get_input_size())]


def _reachable(
    start: "openvino.Node", neighbours: "Callable[[openvino.Node], list[openvino.Node]]", ends: Iterable[str]
) -> set[str]:
    """Names of the nodes on all ways from start; a way ends at one of `ends`, which belongs to it."""
    seen, waiting = {start.get_name()}, [start]
    while waiting:
        for node in neighbours(waiting.pop()):
            if node.get_name() not in seen:
                seen.add(node.get_name())
                if node.get_name() not in ends:
                    waiting.append(node)
    return seen


def quantize(model: "openvino.Model", ranges: Ranges) -> None:
    """Make the products of the model int8 ones, in place. ranges: of every one of `products`."""
    for product in products(model):
        factor = _quantize_activation(product, ranges[product.name])
        _quantize_weight(product, factor)
    model.validate_nodes_and_infer_types()


def _quantize_activation(product: Product, ranges: list[Range]) -> np.ndarray:
    """Put 256 levels before the product. Returns the factor that its weight takes over, [I, 1, 1] or a scalar."""
    from openvino import opset13

    node, factor = product.node, np.float32(1)
    if len(ranges) == 1 and node.get_type_name() == "Convolution":
        inside = outside = _levels_with_zero(*ranges[0])
    else:
        # With a zero point of their own matrix products come out wrong in OpenVINO 2026.4.
        largest = np.array([max(abs(low), abs(high)) for low, high in ranges], np.float32)
        if len(ranges) > 1:
            sizes = [part.get_partial_shape()[1].get_length() for part in product.parts]
            factor = np.repeat(largest, sizes)[:, None, None]  # [I, 1, 1]
            largest = np.ones(1, np.float32)
        lowest = np.float32(-(LARGEST + 1) / LARGEST)
        outside = lowest * largest, largest
        inside = (outside[0] * factor, outside[1] * factor) if len(ranges) > 1 else outside
    limits = [np.asarray(limit, np.float32) for limit in (*inside, *outside)]
    quantized = opset13.fake_quantize(node.input_value(0), *limits, LEVELS)
    node.input(0).replace_source_output(quantized.output(0))
    return np.asarray(factor)


def _levels_with_zero(low: float, high: float) -> tuple[float, float]:
    """The range moved by less than a level, so that the zeros around an image are a level."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / (LEVELS - 1)
    zero = round(-low / step)
    return -zero * step, (LEVELS - 1 - zero) * step


def _quantize_weight(product: Product, factor: np.ndarray) -> None:
    """255 levels, as many below zero as above, for each output channel. factor: of its input channels."""
    from openvino import opset13

    node = product.node
    weight = _constant(node).get_data().astype(np.float32) * factor
    transposed = node.get_type_name() == "MatMul" and not node.get_attributes()["transpose_b"]  # [I, O], not [O, I]
    inputs = 0 if transposed else tuple(range(1, weight.ndim))
    step = np.maximum(np.abs(weight).max(inputs, keepdims=True), np.finfo(np.float32).tiny) / LARGEST
    levels = opset13.constant(np.rint(weight / step).astype(np.int8))
    weight = opset13.multiply(opset13.convert(levels, "f32"), opset13.constant(step))
    node.input(1).replace_source_output(weight.output(0))


def int8_model(model: "openvino.Model", folder: Path, sha256: str) -> "openvino.Model":
    """The model of a checkpoint with int8 products, by the ranges in its folder; changed in place.

    sha256: of the weights in the model.

    Raises:
        CheckpointError: no ranges, or none for these weights.
    """
    wanted = {product.name: len(product.parts) for product in products(model)}
    quantize(model, read_ranges(folder, wanted, sha256))
    return model


def write_ranges(folder: Path, ranges: Ranges, sha256: str) -> Path:
    """sha256: of the weights that the ranges were measured with."""
    rounded = {name: [[float(f"{end:.5g}") for end in part] for part in parts] for name, parts in ranges.items()}
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(parts)}" for name, parts in rounded.items())
    text = f'{{\n  "sha256": {json.dumps(sha256)},\n  "ranges": {{\n{lines}\n  }}\n}}\n'
    replace_file(folder / RANGES, text.encode())
    return folder / RANGES


def read_ranges(folder: Path, wanted: dict[str, int], sha256: str) -> Ranges:
    """The ranges of a checkpoint. wanted: parts by the name of the weight.

    Raises:
        CheckpointError: the file is missing or damaged, or belongs to other weights.
    """
    path, again = folder / RANGES, f"measure them by `run.py quantize {folder}`"
    try:
        content = json.loads(path.read_text("utf-8"))
        known, ranges = content["sha256"], {name: list(parts) for name, parts in content["ranges"].items()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist, and int8 needs its ranges: {again}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}: {again}") from error
    if known != sha256:
        raise CheckpointError(f"{path} belongs to other weights: {again}")
    if {name: len(parts) for name, parts in ranges.items()} != wanted:
        names = ", ".join(
            sorted(n for n in wanted.keys() | ranges.keys() if len(ranges.get(n, [])) != wanted.get(n))
        )
        raise CheckpointError(f"{path} does not have the ranges that the network needs, see {names}: {again}")
    for name, parts in ranges.items():
        if not all(map(_is_range, parts)):
            raise CheckpointError(f"{path}: {name} must have finite ranges [low, high], got {parts}: {again}")
    return ranges


def _is_range(part: Any) -> bool:
    numbers = isinstance(part, list) and len(part) == 2 and all(type(end) in (int, float) for end in part)
    return numbers and all(abs(end) < LARGEST_RANGE for end in part) and part[0] < part[1]
