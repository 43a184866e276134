"""DIFFUSION_DTYPE=int8: what is served, and what is refused for which reason."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import SecretStr

from models.checkpoint import CheckpointError, load_checkpoint
from models.files import GRAPH
from models.graph import trace, write_graph
from models.quantization import RANGES, products, write_ranges
from service.local import create_app
from service.registry import load_runners
from service.settings import ModelEntry, SettingsError
from tests.checkpoints import TINY, write_checkpoint
from tests.models.networks import inputs
from tests.models.test_quantization import precisions_of
from tests.service.conftest import running, tiny_settings
from tests.service.pictures import pixels
from tests.service.test_admin import ADMIN, put, write_other
from training.quantize import measure

LINK = {"class": "cat", "seed": 7, "steps": 4, "deterministic": "true", "format": "png"}
FRESH = {"architecture": "dit", "arguments": TINY["dit"]}
FOREIGN = "models.dit_model:DIT"
pytestmark = pytest.mark.skipif(not find_spec("openvino"), reason="needs OpenVINO: pip install -e '.[cpu]'")


def add_ranges(folder: Path) -> Path:
    """What `run.py quantize` and `run.py export` write, on random images."""
    network, config = load_checkpoint(folder)
    model = trace(network, config)
    write_ranges(folder, measure(model, iter([inputs(32, 3, 8, 3)])), config.sha256)
    write_graph(network, config, folder)
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints with ranges and graphs."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name in TINY:
        add_ranges(write_checkpoint(root / name, name))
    return root


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    return shutil.copytree(original, tmp_path / "checkpoints")


def int8_settings(folder: Path, **changes: Any) -> Any:
    return tiny_settings(folder, **({"dtype": "int8", "backend": "auto", "threads": 1} | changes))


def test_the_products_run_in_int8(folder: Path) -> None:
    (folder / "dit" / GRAPH).unlink()  # it is traced before it serves
    for name, runner in load_runners(int8_settings(folder)).items():
        facts = runner.describe()
        assert (facts["backend"], facts["dtype"], runner.make_faster) == ("openvino", "int8", None)
        request: Any = runner.model._request
        wanted = len(products(trace(*load_checkpoint(folder / name))))
        assert precisions_of(request.get_compiled_model())[True] == wanted > 0


def test_images_are_close_to_those_of_float32(folder: Path) -> None:
    found = []
    for settings in (tiny_settings(folder), int8_settings(folder)):
        with running(create_app(settings)) as live:
            answers = [live.client.get("/generate", params=LINK | {"model": name}) for name in TINY]
            found.append([pixels(answer).astype(int) for answer in answers])
            cards = live.client.get("/models").json()["models"]
            assert {(card["dtype"], card["deterministic"]) for card in cards} == {(settings.dtype, True)}
    for exact, int8 in zip(*found, strict=True):
        assert 0 < np.abs(exact - int8).mean() < 4  # of 255


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backend": "torch"}, "DIFFUSION_DTYPE is int8, which torch does not run: set DIFFUSION_BACKEND"),
        ({"models": {"x": ModelEntry(config=FRESH)}}, "x has fresh weig"),
    ],
)
def test_settings_that_int8_does_not_fit_are_refused(folder: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_runners(int8_settings(folder, **changes))


def test_an_architecture_of_ones_own_is_refused(folder: Path) -> None:
    models = {"mine": ModelEntry(checkpoint=folder / "dit", architecture=FOREIGN)}
    with pytest.raises(SettingsError, match="model mine has an architecture of its own"):
        load_runners(int8_settings(folder, models=models))


def test_a_gpu_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.registry.choose_device", lambda name: torch.device("cuda"))
    with pytest.raises(SettingsError, match="int8, which is for a CPU: set DIFFUSION_DEVICE to cpu"):
        load_runners(int8_settings(folder))


def test_without_openvino_the_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.backend.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"int8, which needs OpenVINO, .*pip install '\S+\[cpu\]'"):
        load_runners(int8_settings(folder))


def spoil_ranges(folder: Path) -> None:
    """As if the scales had been measured for a network a hundred times as loud."""
    content = json.loads((folder / RANGES).read_text())
    for parts in content["ranges"].values():
        parts[:] = [[100 * low, 100 * high] for low, high in parts]
    (folder / RANGES).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / RANGES).unlink(), "does not exist, and int8 needs its ranges"),
        (lambda folder: write_other(folder, folder), "belongs to other weights"),
        (lambda folder: (folder / GRAPH).write_text("<net>torn"), "run.py export"),
        (spoil_ranges, "OpenVINO cannot run it in int8: a forward of OpenVINO differs"),
    ],
)
def test_a_checkpoint_without_fitting_ranges_or_graph_stops_the_start(folder: Path, spoil: Any, said: str) -> None:
    spoil(folder / "unet")
    with pytest.raises(CheckpointError, match=f"model unet: .*{said}"):
        load_runners(int8_settings(folder))


def test_an_openvino_that_cannot_be_imported_stops_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ImportError("libopenvino.so is not there")

    monkeypatch.setattr("models.graph.core", fail)
    with pytest.raises(CheckpointError, match=r"model dit: OpenVINO cannot run it in int8: libopenvino\.so is not"):
        load_runners(int8_settings(folder))


def test_no_link_names_images_by_other_ranges(folder: Path) -> None:
    shutil.copytree(folder / "dit", folder / "staged/wider")
    content = json.loads((folder / "dit" / RANGES).read_text())
    wider = {name: [[1.5 * low, 1.5 * high] for low, high in parts] for name, parts in content["ranges"].items()}
    (folder / "staged/wider" / RANGES).write_text(json.dumps(content | {"ranges": wider}))
    models = {"dit": ModelEntry(checkpoint=folder / "dit")}
    with running(create_app(int8_settings(folder, models=models, admin_key=SecretStr(ADMIN)))) as live:
        tags = []
        for place in ("staged/wider", "dit", "staged/wider"):
            assert put(live, place).status_code == 200
            tags.append(live.client.get("/generate", params=LINK | {"model": "dit"}).headers["etag"])
    assert tags[0] == tags[2] != tags[1]


def test_a_swap_needs_ranges(folder: Path) -> None:
    write_other(folder / "staged/bare", folder / "dit")
    add_ranges(write_other(folder / "staged/whole", folder / "dit", seed=3))
    models = {"dit": ModelEntry(checkpoint=folder / "dit")}
    with running(create_app(int8_settings(folder, models=models, admin_key=SecretStr(ADMIN)))) as live:
        refused = put(live, "staged/bare")
        assert refused.status_code == 422
        assert "int8 needs its ranges: measure them by `run.py quantize" in refused.text
        assert live.card()["version"] == 1
        swapped = put(live, "staged/whole").json()
        assert (swapped["dtype"], swapped["version"]) == ("int8", 2)
        assert live.client.get("/generate", params=LINK | {"model": "dit"}).status_code == 200
