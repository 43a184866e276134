"""From the settings to the runners: checkpoints, devices, and what stops a start."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoint import CheckpointError
from service import engine_process, registry
from service.local import create_app
from service.observe import logs
from service.registry import choose_device, choose_dtype, load_runners
from service.settings import ModelEntry, Settings, SettingsError, model_entries
from service.wire.control import BAD_INPUT
from tests.checkpoints import TINY, write_checkpoint
from tests.service.conftest import running, tiny_settings


def test_a_few_step_checkpoint_is_served_from_its_folder(tmp_path: Path) -> None:
    few = {"arguments": TINY["dit"] | {"few_step": True}, "guidance_range": (1.0, 3.0)}
    write_checkpoint(tmp_path / "dit", "dit", sampling={"sampler": "consistency", "steps": 2}, **few)
    with running(create_app(tiny_settings(tmp_path))) as server:
        fields = {"model": "dit", "class": "cat", "seed": 1, "deterministic": "true"}
        for more in ({}, {"guidance": 2}, {"guidance": 5}, {"quality": "draft"}, {"sampler": "dpmpp_2m_sde"}):
            assert server.client.post("/generate", params=fields | more).status_code == 200
        [model] = server.client.get("/models").json()["models"]
        assert model["guidance_range"] == [1.0, 3.0]
        assert "consistency" in model["samplers"]


def test_a_named_quality_beyond_the_limits_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "dit", "dit", qualities={"best": {"steps": 900}})
    with pytest.raises(CheckpointError, match="model dit: best steps 900"):
        load_runners(tiny_settings(tmp_path))


def test_every_checkpoint_in_the_folder_is_a_model(checkpoints: Path) -> None:
    assert list(model_entries(tiny_settings(checkpoints))) == ["dit", "unet"]


@pytest.mark.parametrize("name", ["org/unet", "", "x\n", ".."])
def test_a_model_that_no_path_could_name_is_refused(name: str, checkpoints: Path) -> None:
    entry = ModelEntry(checkpoint=checkpoints / "dit")
    with pytest.raises(SettingsError, match="model name"):
        load_runners(Settings(models={name: entry}, device="cpu"))


def test_a_folder_that_no_path_could_name_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "dit ", "dit")
    with pytest.raises(SettingsError, match="model name 'dit '"):
        load_runners(tiny_settings(tmp_path))


def test_hidden_folders_are_no_models(tmp_path: Path) -> None:
    for name in ("dit", ".dit.tmp", ".Trash-0"):
        write_checkpoint(tmp_path / name, "dit")
    (tmp_path / ".dit.tmp" / "model.safetensors").write_bytes(b"half a copy")
    assert list(load_runners(tiny_settings(tmp_path))) == ["dit"]


def test_the_engine_serves_the_models_that_its_supervisor_has_seen(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that appears in between has no place on the board."""
    asked: list[Settings] = []

    def load_core(settings: Settings) -> None:
        asked.append(settings)
        raise SettingsError("enough is known")

    monkeypatch.setenv("DIFFUSION_CHECKPOINTS", str(checkpoints))
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    monkeypatch.setattr(registry, "load_core", load_core)
    with pytest.raises(SystemExit, match=str(BAD_INPUT)):
        engine_process.main({"models": ["dit"]})
    assert [list(model_entries(settings)) for settings in asked] == [["dit"]]


@pytest.mark.parametrize("names", [["Cat", "cat", "dog"], ["cat", " cat ", "dog"], ["a", "", "b"]])
def test_classes_that_a_request_could_not_tell_apart_stop_the_start(names: list[str]) -> None:
    entry = ModelEntry(config={"architecture": "dit", "arguments": TINY["dit"], "class_names": names})
    with pytest.raises(CheckpointError, match="model x: class name"):
        load_runners(Settings(models={"x": entry}, device="cpu"))


def test_a_folder_that_cannot_be_read_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(SettingsError, match=rf"no checkpoint in {missing}: .*No such file or directory"):
        model_entries(Settings(checkpoints=missing))
    (tmp_path / "dit").mkdir()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(SettingsError, match=rf"{tmp_path / 'dit'} cannot be read"):
        model_entries(Settings(checkpoints=tmp_path))


def test_an_empty_folder_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=rf"no checkpoint in {tmp_path}: .*DIFFUSION_MODELS"):
        load_runners(tiny_settings(tmp_path))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "does not exist"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 100), "truncated or altered"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text('{"architecture": "vae", "arguments": {}}'), "vae"),
    ],
    ids=["missing", "overwritten", "no json", "unknown architecture"],
)
def test_a_broken_checkpoint_names_model_and_file(tmp_path: Path, damage: Any, reason: str) -> None:
    damage(write_checkpoint(tmp_path / "broken", "dit"))
    with pytest.raises(CheckpointError, match=f"model broken: .*{reason}"):
        load_runners(tiny_settings(tmp_path))


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("nowhere:Model", "nowhere"), ("models.dit_model:Nothing", "Nothing"), ("math:sqrt", "not a torch.nn.Module")],
)
def test_a_dotted_path_that_leads_nowhere_stops_the_start(architecture: str, reason: str) -> None:
    entry = ModelEntry(architecture=architecture, config={"arguments": {}})
    with pytest.raises(CheckpointError, match=f"model x: .*{reason}"):
        load_runners(Settings(models={"x": entry}, device="cpu"))


def test_an_inline_config_gives_fresh_weights() -> None:
    config = {"architecture": "unet", "arguments": TINY["unet"], "class_names": ["a", "b"]}
    runner = load_runners(Settings(models={"x": ModelEntry(config=config)}, device="cpu", dtype="bfloat16"))["x"]
    assert runner.config.num_classes == 2
    assert {p.dtype for p in runner.model.parameters()} == {torch.bfloat16}


def test_an_error_of_an_inline_config_names_the_model_once() -> None:
    entry = ModelEntry(config={"architecture": "dit", "schedule": "none"})
    with pytest.raises(CheckpointError, match="^model x: unknown noise schedule"):
        load_runners(Settings(models={"x": entry}, device="cpu"))


def test_a_wrong_number_of_class_names_stops_the_start() -> None:
    config = {"architecture": "dit", "arguments": TINY["dit"] | {"num_classes": 3}, "class_names": ["a"]}
    with pytest.raises(CheckpointError, match="1 class_names for a model of 3"):
        load_runners(Settings(models={"x": ModelEntry(config=config)}, device="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_without_a_device() -> None:
    assert choose_device("auto").type == "cpu"
    with pytest.raises(SettingsError, match="DIFFUSION_DEVICE is cuda"):
        choose_device("cuda")


def test_the_dtype_is_the_one_asked_for_or_fits_the_cpu() -> None:
    assert choose_dtype("float16", torch.device("cpu")) is torch.float16
    assert choose_dtype("auto", torch.device("cpu")) in (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"shape": [4, 8, 8]}, "4 channels"),
        ({"shape": [3, 8, 9]}, "RuntimeError"),
        ({"sampling": {"guidance": 99}}, "guidance 99"),
        ({"sampling": {"steps": 300}}, "DIFFUSION_MAX_STEPS 250"),
    ],
)
def test_a_model_that_cannot_be_served_stops_the_start(config: dict[str, Any], reason: str) -> None:
    arguments = TINY["dit"] | {"image_channels": config.get("shape", [3])[0]}
    entry = ModelEntry(config={"architecture": "dit", "arguments": arguments} | config)
    with pytest.raises(CheckpointError, match=f"model x: .*{reason}"):
        load_runners(Settings(models={"x": entry}, device="cpu"))
