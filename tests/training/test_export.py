"""`run.py export`: the graph beside the weights, and the ONNX file that other programs run."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.checkpoint import ModelConfig, load_checkpoint, save_checkpoint
from models.files import CONSTANTS, GRAPH, SHIPPED, WEIGHTS
from models.graph import INPUTS, core, read_graph
from models.sampling import Guidance, sample, to_uint8
from run import main
from tests.checkpoints import KINDS, write_checkpoint

PIXEL = 1  # of 255: the most by which a pixel of a whole image may differ; sums in float32 have another order
Network = Callable[..., Tensor]


def of_onnxruntime(file: Path) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda *tensors: run(lambda named: session.run(["image"], named)[0], tensors)


def of_openvino(file: Path) -> Network:
    model = core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda *tensors: run(lambda named: model(named)["image"], tensors)


def run(network: Callable[[dict[str, np.ndarray]], Any], tensors: tuple[Tensor, ...]) -> Tensor:
    named = {name: tensor.numpy() for name, tensor in zip(INPUTS, tensors, strict=False)}
    return torch.from_numpy(network(named))


def images(network: Network, config: ModelConfig, n: int) -> np.ndarray:
    """n unguided images after a few steps, so n rows a forward, [n, C, H, W] in 0..255."""
    labels, seeds = torch.arange(n) % config.num_classes, torch.arange(n)
    table = config.table("euler", 3)
    guidance = Guidance(trained=config.guidance_range)
    x = sample(network, table, labels, seeds, config.image_shape, guidance=guidance, null_label=config.num_classes)
    return to_uint8(x).numpy().astype(int)


@pytest.fixture(scope="module", params=["dit", "unet", "few-step"])
def onnx_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's ONNX file, in its own folder."""
    architecture, changes = KINDS[request.param]
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), architecture, **changes)
    assert main(["export", str(folder), "--onnx", str(folder / "file.onnx")]) == 0
    return folder / "file.onnx"


@pytest.mark.parametrize("load", [of_onnxruntime, of_openvino])
@pytest.mark.parametrize("n", [1, 3, 8])
def test_other_programs_draw_the_same_images(load: Callable[[Path], Network], n: int, onnx_file: Path) -> None:
    network, config = load_checkpoint(onnx_file.parent)
    wanted, got = images(network, config, n), images(load(onnx_file), config, n)
    assert np.abs(got - wanted).max() <= PIXEL
    assert wanted.std() > 1  # they are not of one colour


def test_an_onnx_file_stands_alone(onnx_file: Path) -> None:
    others = {file.name for file in onnx_file.parent.iterdir()} - {"config.json", WEIGHTS}
    assert others == {"file.onnx"}


def test_warnings_that_no_user_can_act_on_are_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_checkpoint(tmp_path / "mine", "dit")
    assert main(["export", str(folder), "--onnx", str(tmp_path / "file.onnx")]) == 0
    logging.getLogger("torch.onnx._internal.exporter._registration").warning("another one")
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == ["another one"]


def test_export_writes_the_graph_into_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path / "mine", "unet")
    assert main(["export", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / GRAPH}\n"
    assert {file.name for file in folder.iterdir()} == {"config.json", WEIGHTS, GRAPH, CONSTANTS}
    read_graph(folder, folder / WEIGHTS)


class Failing(nn.Module):
    """A network of the tests; its forward always fails."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        raise LookupError("no way")


@pytest.mark.parametrize("options", [[], ["--onnx", "file.onnx"]])
def test_a_network_that_cannot_be_exported_is_told(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "mine", Failing(), ModelConfig("mine", {}))
    assert main(["export", "mine", "--architecture", "tests.training.test_export:Failing", *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "cannot be exported to" in said
    assert "no way" in said
    assert {file.name for file in (tmp_path / "mine").iterdir()} == {"config.json", WEIGHTS}
    assert not Path("file.onnx").exists()


def test_an_onnx_file_is_of_one_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--onnx", str(tmp_path / "file.onnx")]) == 2
    assert capsys.readouterr().err == "error: --onnx writes one checkpoint, got dit unet: name one\n"


@pytest.mark.parametrize(
    ("module", "options", "extra"),
    [("openvino", [], "cpu"), ("onnx", ["--onnx", "a.onnx"], "export"), ("onnxscript", ["--onnx", "a"], "export")],
)
def test_a_missing_package_is_named(
    module: str,
    options: list[str],
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert main(["export", str(SHIPPED / "dit"), *options]) == 2
    said = capsys.readouterr().err
    assert said == f"error: export needs {module}: pip install 'stepwise-diffusion[{extra}]'\n"
