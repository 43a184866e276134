"""int8 products: which ones, how well they compute, and the file that holds their ranges."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.checkpoint import CheckpointError, ModelConfig, build_model
from models.graph import core, import_openvino, trace
from models.quantization import RANGES, Ranges, int8_model, products, quantize, read_ranges, write_ranges
from tests.checkpoints import TINY
from tests.models.networks import inputs, randomized
from training.quantize import measure

SHA256 = "0" * 64
INT8 = {"i8", "u8"}


class Skips(nn.Module):
    """A concatenation of two sides whose scales are `ratio` apart, and which count alike in the image."""

    def __init__(self, ratio: float):
        super().__init__()
        self.conv_in, self.large, self.small = (nn.Conv2d(a, 16, 3, padding=1) for a in (3, 16, 16))
        self.join, self.conv_out = nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        with torch.no_grad():
            for parameter in self.large.parameters():
                parameter *= ratio
            self.join.weight[:, :16] /= ratio

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        h = self.conv_in(x) + t[:, None, None, None] / 1000 + y[:, None, None, None]
        return self.conv_out(self.join(torch.cat([self.large(h), self.small(h)], dim=1)))


class Bright(nn.Module):
    """Its middle layer reads positive numbers, and sums many of them: a shift of all would stand out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.conv_out = nn.Conv2d(3, 32, 1), nn.Conv2d(8, 3, 1)
        self.middle = nn.Conv2d(32, 8, 3, padding=1)
        self.middle.weight.data.abs_()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.conv_out(self.middle(self.conv_in(x + (t + y)[:, None, None, None] / 1000).abs()))


@pytest.fixture(params=list(TINY))
def network(request: pytest.FixtureRequest) -> tuple[Any, tuple[Tensor, ...]]:
    """A traced network with weights everywhere, and inputs for it."""
    config = ModelConfig(request.param, TINY[request.param])
    return trace(randomized(build_model(config)), config), inputs(8, 3, 8, 10)


@pytest.fixture
def skips() -> tuple[Any, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    config = ModelConfig("", {}, shape=(3, 8, 8))
    return trace(Skips(100.0).eval().requires_grad_(False), config), inputs(8, 3, 8, 10)


def wanted(model: Any) -> set[str]:
    """By their names: all matrices of a DiT's blocks, and all convolutions of a UNet but two."""
    shapes = {
        node.get_friendly_name(): node.shape for node in model.get_ops() if node.get_type_name() == "Constant"
    }
    blocks = {name for name in shapes if name.startswith("blocks.") and name.endswith(".weight")}
    ends = {"conv_in.weight", "conv_out.weight"}
    return blocks or {name for name, shape in shapes.items() if name.endswith("weight") and len(shape) == 4} - ends


def compiled(model: Any) -> Any:
    return core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def run(model: Any, given: tuple[Tensor, ...]) -> np.ndarray:
    return compiled(model)([tensor.numpy() for tensor in given])[0]


def error(model: Any, ranges: Ranges, given: tuple[Tensor, ...]) -> float:
    """Of the int8 network, as a share of the image: both root mean squares."""
    wanted, int8 = run(model, given), model.clone()
    quantize(int8, ranges)
    return float(np.linalg.norm(run(int8, given) - wanted) / np.linalg.norm(wanted))


def precisions(model: Any) -> Counter[bool]:
    return precisions_of(compiled(model))


def precisions_of(program: Any) -> Counter[bool]:
    """How many products read 8 bits and how many do not, in the program that OpenVINO has made."""
    facts = [node.get_rt_info() for node in program.get_runtime_model().get_ops()]
    kinds = [(fact["layerType"].astype(str), fact["runtimePrecision"].astype(str)) for fact in facts]
    return Counter(bits in INT8 for layer, bits in kinds if layer in ("Convolution", "FullyConnected", "MatMul"))


def test_all_but_the_first_the_last_and_the_conditioning_are_int8(network: Any) -> None:
    model, given = network
    names = {product.name for product in products(model)}
    assert names == wanted(model)
    before = precisions(model)
    quantize(model, measure(model, iter([given])))
    assert precisions(model) == {True: len(names), False: before[False] - len(names)}


def test_the_image_changes_little(network: Any) -> None:
    model, given = network
    assert 0 < error(model, measure(model, iter([given])), given) < 0.1


def test_each_side_of_a_concatenation_has_a_scale_of_its_own(skips: Any) -> None:
    model, given = skips
    ranges = measure(model, iter([given]))
    (large_low, large_high), (small_low, small_high) = ranges["join.weight"]
    assert large_high - large_low > 30 * (small_high - small_low)
    assert error(model, ranges, given) < 0.03
    together = ranges | {"join.weight": [(large_low, large_high)] * 2}
    assert error(model, together, given) > 0.1


def test_a_concatenation_is_one_convolution_in_int8(skips: Any) -> None:
    model, given = skips
    quantize(model, measure(model, iter([given])))
    assert precisions(model) == {True: 3, False: 2}


@pytest.mark.parametrize("between", [0.0, 0.25, 0.5, 0.75])
def test_zero_is_a_level_of_every_range(between: float) -> None:
    """between: where zero lies between two levels of the given range. OpenVINO rounds zero points to levels."""
    torch.manual_seed(0)
    model, given = trace(Bright(), ModelConfig("", {}, shape=(3, 8, 8))), inputs(8, 3, 8, 10)
    ((_, high),) = measure(model, iter([given]))["middle.weight"]
    step = high / 255
    assert error(model, {"middle.weight": [(-between * step, high)]}, given) < 0.003


def test_weights_in_float16_are_quantized_too(skips: Any) -> None:
    model, given = skips
    ov, ranges = import_openvino(), measure(model, iter([given]))
    for product in products(model):
        constant = product.node.input_value(1).get_node()
        half = ov.opset13.constant(constant.get_data().astype(np.float16))
        half.set_friendly_name(product.name)
        product.node.input(1).replace_source_output(ov.opset13.convert(half, "f32").output(0))
    assert error(model, ranges, given) < 0.03
    quantize(model, ranges)
    assert precisions(model) == {True: 3, False: 2}


def test_ranges_come_back_as_they_were_written(tmp_path: Path, skips: Any) -> None:
    model, given = skips
    ranges = measure(model, iter([given]))
    path = write_ranges(tmp_path, ranges, SHA256)
    known = read_ranges(tmp_path, {name: len(parts) for name, parts in ranges.items()}, SHA256)
    assert known.keys() == ranges.keys()
    for name, parts in known.items():
        np.testing.assert_allclose(parts, ranges[name], rtol=1e-4)
    assert path == tmp_path / RANGES
    assert precisions(int8_model(model, tmp_path, SHA256)) == {True: 3, False: 2}


GOOD = {"sha256": SHA256, "ranges": {"a": [[-1.0, 1]], "b": [[0, 2], [-3, 4.5]]}}


def with_a(*parts: Any) -> dict[str, Any]:
    return GOOD | {"ranges": GOOD["ranges"] | {"a": list(parts)}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        ("{", "cannot be read"),
        ([], "cannot be read"),
        ({"ranges": {}}, "cannot be read"),
        (GOOD | {"ranges": [1]}, "cannot be read"),
        (GOOD | {"sha256": "1" * 64}, "other weights"),
        (GOOD | {"ranges": {"a": [[-1, 1]]}}, "see b"),
        (GOOD | {"ranges": GOOD["ranges"] | {"c": [[0, 1]]}}, "see c"),
        (with_a([-1, 1], [-1, 1]), "see a"),
        (with_a([1, 1]), "a must have finite ranges"),
        (with_a([2, 1]), "a must have finite ranges"),
        (with_a([-1, float("nan")]), "a must have finite ranges"),
        (with_a([-1, float("inf")]), "a must have finite ranges"),
        (with_a([-1, 10**400]), "a must have finite ranges"),
        (with_a([-1, "1"]), "a must have finite ranges"),
        (with_a([-1, True]), "a must have finite ranges"),
        (with_a([-1, 0, 1]), "a must have finite ranges"),
        (with_a(5), "a must have finite ranges"),
    ],
)
def test_ranges_that_cannot_be_used_are_refused(tmp_path: Path, content: Any, said: str) -> None:
    if content is not None:
        (tmp_path / RANGES).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(CheckpointError, match=said) as refused:
        read_ranges(tmp_path, {"a": 1, "b": 2}, SHA256)
    assert f"run.py quantize {tmp_path}" in str(refused.value)


def test_good_ranges_are_read(tmp_path: Path) -> None:
    (tmp_path / RANGES).write_text(json.dumps(GOOD))
    assert read_ranges(tmp_path, {"a": 1, "b": 2}, SHA256) == GOOD["ranges"]
