"""The graph of a checkpoint: what it computes, what it stores, and what is refused."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models import graph
from models.checkpoint import CheckpointError, ModelConfig, load_checkpoint
from models.files import CONFIG, CONSTANTS, GRAPH, SHIPPED, WEIGHTS
from tests.checkpoints import CLASS_NAMES, KINDS, TINY, write_checkpoint

ROUNDING = 1e-4  # of the largest pixel: both compute in float32 and add in another order


class Exported(NamedTuple):
    """A tiny checkpoint with its graph."""

    folder: Path
    network: nn.Module
    config: ModelConfig


def export(folder: Path, kind: str) -> Exported:
    architecture, changes = KINDS[kind]
    network, config = load_checkpoint(write_checkpoint(folder, architecture, **changes))
    graph.write_graph(network, config, folder)
    return Exported(folder, network, config)


@pytest.fixture(scope="module", params=KINDS)
def each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tmp_path_factory.mktemp("each"), request.param)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(tmp_path_factory.mktemp("original"), "dit")


@pytest.fixture
def dit(original: Exported, tmp_path: Path) -> Exported:
    """A copy to be changed."""
    shutil.copytree(original.folder, tmp_path / "dit")
    return Exported(tmp_path / "dit", *load_checkpoint(original.folder))


def rows(config: ModelConfig, n: int) -> list[Tensor]:
    """x, t, y and for a few_step network r and w; every class, and the null class, if n allows it."""
    generator = torch.Generator().manual_seed(n)
    x, t = torch.randn(n, *config.image_shape, generator=generator), 1000 * torch.rand(n, generator=generator)
    few = [t / 3, torch.linspace(1, 3, n)] if config.is_few_step else []
    return [x, t, torch.arange(n) % (config.num_classes + 1), *few]


def run(model: Any, inputs: list[Tensor]) -> np.ndarray:
    """In float32, by names."""
    compiled = graph.core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    named = dict(zip(graph.INPUTS, (tensor.numpy() for tensor in inputs), strict=False))
    return compiled(named)[graph.OUTPUT]


def distance(model: Any, network: nn.Module, inputs: list[Tensor]) -> float:
    """The largest difference of a pixel, as a share of the largest pixel."""
    wanted = network(*inputs).numpy()
    got = run(model, inputs)
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def test_a_graph_computes_what_the_network_computes_at_any_number_of_rows(each: Exported) -> None:
    model = graph.trace(each.network, each.config)
    for n in (1, 2, 3, 8):
        assert distance(model, each.network, rows(each.config, n)) < ROUNDING


def test_a_graph_that_was_read_computes_the_same(each: Exported) -> None:
    model = graph.read_graph(each.folder, each.folder / WEIGHTS)
    assert [port.any_name for port in model.inputs] == list(graph.INPUTS[: len(model.inputs)])
    for n in (1, 8):
        assert distance(model, each.network, rows(each.config, n)) < ROUNDING


def test_weights_are_constants_with_the_names_of_the_parameters(each: Exported) -> None:
    nodes = graph.read_graph(each.folder, each.folder / WEIGHTS).get_ops()
    constants = {node.get_friendly_name(): node for node in nodes if node.get_type_name() == "Constant"}
    for name, parameter in each.network.named_parameters():
        assert np.array_equal(constants[name].data, parameter.numpy()), name


def test_group_norms_are_replaced_by_plain_operations(each: Exported) -> None:
    model = graph.read_graph(each.folder, each.folder / WEIGHTS)
    assert "GroupNormalization" not in {node.get_type_name() for node in model.get_ops()}


def test_a_trace_leaves_the_network_as_it_was(dit: Exported) -> None:
    _, network, config = dit
    before, inputs = dict(network.named_parameters()), rows(config, 2)
    image = network(*inputs)
    graph.trace(network, config)
    assert all(parameter is before[name] for name, parameter in network.named_parameters())
    assert torch.equal(network(*inputs), image)


def test_the_weights_are_stored_once(each: Exported) -> None:
    stored = (each.folder / CONSTANTS).read_bytes() + (each.folder / GRAPH).read_bytes()
    for parameter in each.network.parameters():
        assert parameter.numpy().tobytes() not in stored
        assert parameter.half().numpy().tobytes() not in stored


def test_a_graph_takes_other_weights_of_its_layout(dit: Exported, tmp_path: Path) -> None:
    others = {name: 0.5 * tensor for name, tensor in dit.network.state_dict().items()}
    dit.network.load_state_dict(others)
    save_file(others, tmp_path / "others.safetensors")
    model = graph.read_graph(dit.folder, tmp_path / "others.safetensors")
    assert distance(model, dit.network, rows(dit.config, 3)) < ROUNDING


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_may_be_wrapped_and_of_any_float(
    dtype: torch.dtype, prefix: str, dit: Exported, tmp_path: Path
) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in dit.network.state_dict().items()}
    save_file({prefix + name: tensor for name, tensor in weights.items()}, tmp_path / "others.safetensors")
    dit.network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    model = graph.read_graph(dit.folder, tmp_path / "others.safetensors")
    assert distance(model, dit.network, rows(dit.config, 3)) < ROUNDING


def reconfigure(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(values | changes))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no graph": (lambda folder: (folder / GRAPH).unlink(), "cannot be read"),
    "no constants": (lambda folder: (folder / CONSTANTS).unlink(), "cannot be read"),
    "half a graph": (lambda folder: cut(folder / GRAPH), "does not fit"),
    "half of the constants": (lambda folder: cut(folder / CONSTANTS), "not of this network"),
    "constants of another": (
        lambda folder: (folder / CONSTANTS).write_bytes(bytes(len((folder / CONSTANTS).read_bytes()))),
        "not of this network",
    ),
    "other arguments": (
        lambda folder: reconfigure(folder, arguments=TINY["dit"] | {"num_heads": 2}), "not of this network",
    ),
    "another architecture": (lambda folder: reconfigure(folder, architecture="unet"), "not of this network"),
    "more classes": (lambda folder: reconfigure(folder, class_names=[*CLASS_NAMES, "x"]), "not of this network"),
    "a weight less": (
        lambda folder: change_weights(folder, lambda w: w.pop("patch_embed.bias")), "it lacks patch_embed.bias",
    ),
    "a weight more": (
        lambda folder: change_weights(folder, lambda w: w.update(new=torch.zeros(1))), "it has unknown new",
    ),
    "another size": (
        lambda folder: change_weights(folder, lambda w: w.update({"patch_embed.bias": torch.zeros(3)})),
        r"it has other sizes: patch_embed.bias \[3\], not \[32\]",
    ),
    "torn weights": (lambda folder: cut(folder / WEIGHTS), "does not fit"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_fit_is_refused(damage: str, dit: Exported) -> None:
    harm, reason = DAMAGES[damage]
    harm(dit.folder)
    with pytest.raises(CheckpointError, match=reason) as caught:
        graph.read_graph(dit.folder, dit.folder / WEIGHTS)
    assert f"`run.py export {dit.folder}`" in str(caught.value)


def test_the_graph_of_another_class_is_refused(dit: Exported) -> None:
    folder, network, config = dit
    with pytest.raises(CheckpointError, match="not of this network"):
        graph.read_graph(folder, folder / WEIGHTS, "my.module:Net")
    graph.write_graph(network, config, folder, "my.module:Net")
    graph.read_graph(folder, folder / WEIGHTS, "my.module:Net")


class Foreign(nn.Module):
    """What no network of this project has: BatchNorm's state, a shared layer, and what is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.again, self.norm, self.groups = self.first, nn.BatchNorm2d(3), nn.GroupNorm(3, 3)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, image: Tensor, time: Tensor, label: Tensor) -> Tensor:
        h = self.norm(self.again(self.first(image)))
        return self.groups(h.flatten(2)).view_as(h) + torch.sin(time)[:, None, None, None]


class Clashing(Foreign):
    def __init__(self) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.ones(1))


class Counting(Foreign):
    def forward(self, image: Tensor, time: Tensor, label: Tensor) -> Tensor:
        return super().forward(image, time, label) * (2 if len(image) > 1 else 1)


class Failing(Foreign):
    def forward(self, image: Tensor, time: Tensor, label: Tensor) -> Tensor:
        raise LookupError("no way")


FOREIGN = ModelConfig("mine", {}, class_names=CLASS_NAMES, shape=(3, 8, 8))


def test_a_foreign_network_can_be_traced() -> None:
    network = Foreign().eval().requires_grad_(False)
    assert distance(graph.trace(network, FOREIGN), network, rows(FOREIGN, 8)) < ROUNDING


@pytest.mark.parametrize(
    ("network", "reason"),
    [(Counting, "other numbers .* at 1 rows"), (Failing, "no way"), (Clashing, "its weight t has the name of")],
)
def test_a_network_that_cannot_be_traced_is_refused(network: type[nn.Module], reason: str) -> None:
    before = logging.root.level, logging.root.handlers[:], logging.root.filters[:]
    with pytest.raises(CheckpointError, match=f"(?s)cannot be exported to OpenVINO.*{reason}"):
        graph.trace(network().eval(), FOREIGN)
    assert (logging.root.level, logging.root.handlers, logging.root.filters) == before


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_the_shipped_graphs_compute_what_the_networks_compute(name: str) -> None:
    folder = SHIPPED / name
    network, config = load_checkpoint(folder)
    assert distance(graph.read_graph(folder, folder / WEIGHTS), network, rows(config, 8)) < ROUNDING
