"""Checkpoints: what survives the round trip, and one sentence for everything that can be wrong with a file."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.checkpoint import (
    CheckpointError,
    ModelConfig,
    build_model,
    load_checkpoint,
    load_config,
    save_checkpoint,
)
from models.files import SHIPPED, default_checkpoints
from tests.models.networks import inputs, randomized

DIT_ARGUMENTS = {"image_size": 8, "patch_size": 4, "hidden_dim": 16, "depth": 1, "num_heads": 2}
UNET_ARGUMENTS = {"image_size": 8, "base_channels": 4, "channel_multipliers": [1, 2], "num_res_blocks": 1}
DIT_CONFIG = ModelConfig("dit", DIT_ARGUMENTS, prediction="v", training={"seed": 3}, sampling={"steps": 20})
UNET_CONFIG = ModelConfig("unet", UNET_ARGUMENTS, schedule="cosine", class_names=["cat", "dog"])


class Foreign(nn.Module):
    """An architecture that only an operator can name."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return x * self.scale


FOREIGN = f"{__name__}:Foreign"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound DIT checkpoint."""
    save_checkpoint(tmp_path / "dit", randomized(build_model(DIT_CONFIG)), DIT_CONFIG)
    return tmp_path / "dit"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("config", [DIT_CONFIG, UNET_CONFIG], ids=["dit", "unet"])
def test_round_trip_keeps_weights_to_half_a_unit_of_float16(config: ModelConfig, tmp_path: Path) -> None:
    model = randomized(build_model(config))
    save_checkpoint(tmp_path / "new" / "folder", model, config)
    loaded, read = load_checkpoint(tmp_path / "new" / "folder")
    assert type(loaded) is type(model)
    assert not loaded.training
    for (name, before), (also, after) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == also
        assert after.dtype == torch.float32
        assert not after.requires_grad
        # relative 2^-11, and 2^-25 where float16 is subnormal
        torch.testing.assert_close(after, before, rtol=2.0**-11, atol=2.0**-25)
    x, t, y = inputs(2, *config.image_shape[:2], config.num_classes)
    torch.testing.assert_close(loaded(x, t, y), model(x, t, y), rtol=0.02, atol=0.02)
    assert read == ModelConfig(**{**vars(config), "sha256": read.sha256})


def test_weights_are_stored_in_float16(folder: Path) -> None:
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}


def test_a_second_round_trip_loses_nothing(folder: Path, tmp_path: Path) -> None:
    model, config = load_checkpoint(folder)
    save_checkpoint(tmp_path / "again", model, config)
    assert load_config(tmp_path / "again").sha256 == config.sha256


@pytest.mark.parametrize("value", [7e4, float("nan")], ids=["beyond-float16", "nan"])
def test_weights_that_float16_cannot_hold_are_not_saved(value: float, tmp_path: Path) -> None:
    model = build_model(DIT_CONFIG)
    next(model.parameters()).data[0] = value
    with pytest.raises(CheckpointError, match="not finite in float16"):
        save_checkpoint(tmp_path, model, DIT_CONFIG)
    assert list(tmp_path.iterdir()) == []


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def truncate_without_checksum(folder: Path) -> None:
    truncate(folder)
    edit(folder, sha256="")


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))
    edit(folder, sha256="")


def weights_of_a_unet(folder: Path) -> None:
    save_checkpoint(folder / "other", build_model(UNET_CONFIG), UNET_CONFIG)
    (folder / "other" / "model.safetensors").replace(folder / "model.safetensors")
    edit(folder, sha256="")


BROKEN_WEIGHTS: list[tuple[Callable[[Path], None], str]] = [
    (flip_a_bit, "is truncated or altered: its SHA-256 is not the one in config.json"),
    (truncate, "is truncated or altered"),
    (truncate_without_checksum, "is not a readable safetensors file"),
    (pickled_weights, "is not a readable safetensors file"),
    (weights_of_a_unet, "does not hold the weights that config.json describes"),
    (lambda folder: (folder / "model.safetensors").unlink(), "does not exist"),
]


@pytest.mark.parametrize(("damage", "reason"), BROKEN_WEIGHTS, ids=[d.__name__ for d, _ in BROKEN_WEIGHTS])
def test_broken_weights_are_named(damage: Callable[[Path], None], reason: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(folder)
    assert str(folder / "model.safetensors") in str(caught.value)


BROKEN_FILES: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", lambda path: path.unlink(), "does not exist"),
    ("invalid-json", lambda path: path.write_text("{"), "is not valid JSON"),
    ("not-text", lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read"),
    ("list", lambda path: path.write_text("[]"), "mapping"),
    ("missing-field", lambda path: path.write_text('{"architecture": "dit"}'), "arguments"),
]


@pytest.mark.parametrize(("_", "damage", "reason"), BROKEN_FILES, ids=[name for name, _, _ in BROKEN_FILES])
def test_broken_config_files_are_named(_: str, damage: Callable[[Path], object], reason: str, folder: Path) -> None:
    damage(folder / "config.json")
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(folder)
    assert str(folder / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"colour": "red"}, "colour"),
        ({"schedule": "sigmoid"}, "unknown noise schedule 'sigmoid': use one of flow, cosine, linear"),
        ({"schedule": []}, "schedule must be a str"),
        ({"prediction": "score"}, "unknown prediction 'score': use one of eps, v, x0, flow"),
        ({"class_names": []}, "class_names must be a list with one name a class"),
        ({"class_names": [1, 2]}, "class_names must be a list with one name a class"),
        ({"class_names": "abcdefghij"}, "class_names must be a list"),
        ({"arguments": 3}, "arguments must be a dict"),
        ({"arguments": None}, "arguments must be a dict"),
        ({"architecture": ["dit"]}, "architecture must be a str"),
        ({"sampling": 3}, "sampling must be a dict"),
    ],
    ids=str,
)
def test_impossible_fields_are_named(changes: dict[str, Any], reason: str, folder: Path) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(folder)
    assert str(folder / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "gan"}, "unknown architecture 'gan': use one of dit, unet"),
        ({"architecture": FOREIGN}, "unknown architecture"),  # a file may not name what is imported
        ({"arguments": {"heads": 3}}, "architecture 'dit' refuses its arguments.*heads"),
        ({"arguments": {"patch_size": 5}}, "image_size 32 is no multiple of patch_size 5"),
        ({"arguments": {"image_size": "32"}}, "architecture 'dit' refuses its arguments"),
        ({"arguments": DIT_ARGUMENTS | {"num_classes": 3}}, "10 class_names for a model of 3 classes"),
    ],
    ids=["architecture", "dotted-path", "unknown-argument", "impossible-argument", "argument-type", "class-count"],
)
def test_impossible_architectures_say_why(changes: dict[str, Any], reason: str, folder: Path) -> None:
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint(folder)


def test_class_names_decide_the_number_of_classes(folder: Path) -> None:
    """A change of the names alone leaves weights that no longer fit."""
    edit(folder, class_names=["only"])
    with pytest.raises(CheckpointError, match=r"other sizes: condition.label.weight \[11, 16\], not \[2, 16\]"):
        load_checkpoint(folder)


def test_operator_may_name_any_architecture(tmp_path: Path) -> None:
    config = ModelConfig("foreign", {"width": 5}, class_names=["a"])
    save_checkpoint(tmp_path, Foreign(5), config)
    model, _ = load_checkpoint(tmp_path, architecture=FOREIGN)
    assert type(model).__name__ == "Foreign"
    with pytest.raises(CheckpointError, match="unknown architecture 'foreign'"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no.such.module:Model", "cannot import architecture"),
        (f"{__name__}:Missing", "cannot import architecture"),
        ("json:dumps", "is not a torch.nn.Module class"),
        ("pathlib:Path", "is not a torch.nn.Module class"),
    ],
)
def test_operators_mistakes_are_named(path: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        build_model(DIT_CONFIG, architecture=path)


def test_checkpoints_are_looked_for_here_and_then_beside_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_checkpoints() == SHIPPED
    assert load_config(default_checkpoints() / "dit").architecture == "dit"
    (tmp_path / "checkpoints").mkdir()
    assert default_checkpoints() == Path("checkpoints")


def test_weights_without_a_hash_get_one(folder: Path) -> None:
    """Recipes, metrics and ETags tell weights apart by it."""
    known = load_config(folder).sha256
    edit(folder, sha256="")
    assert load_checkpoint(folder)[1].sha256 == known


def rename(folder: Path, change: Callable[[str], str]) -> None:
    """Give every tensor another name."""
    path = folder / "model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path)
    edit(folder, sha256="")


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "ema_model.", "module._orig_mod.", "ema_model.module."]
)
def test_names_that_a_wrapper_has_lengthened_are_loaded(prefix: str, folder: Path) -> None:
    """As they are saved from a model under DistributedDataParallel, torch.compile or an average of weights."""
    before, _ = load_checkpoint(folder)
    rename(folder, lambda name: prefix + name)
    after, _ = load_checkpoint(folder)
    for name, tensor in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor)


class Wrapped(nn.Module):
    """A network whose own weights have names with the prefix of a wrapper."""

    def __init__(self, width: int):
        super().__init__()
        self.module = Foreign(width)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.module(x, t, y)


def test_a_prefix_that_is_the_models_own_stays(tmp_path: Path) -> None:
    config = ModelConfig("foreign", {"width": 5}, class_names=["a"])
    save_checkpoint(tmp_path, Wrapped(5), config)
    load_checkpoint(tmp_path, architecture=f"{__name__}:Wrapped")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda name: f"net.{name}", r"it lacks [\w., ]+ and \d+ more; it has unknown net\.\w"),
        (lambda name: "module." + name if "label" in name else name, "it lacks .*label.*; it has unknown module"),
    ],
    ids=["another prefix", "a prefix on some"],
)
def test_other_names_are_told_in_a_short_sentence(change: Callable[[str], str], says: str, folder: Path) -> None:
    rename(folder, change)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_checkpoint(folder)
    text = str(caught.value).replace(str(folder), "")
    assert "\n" not in text
    assert len(text) < 400


def test_a_config_is_utf_8_in_every_locale(folder: Path) -> None:
    """With the byte order mark that editors on Windows write, in a process whose locale is ASCII."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    names = ["caf\u00e9", *config["class_names"][1:]]
    text = json.dumps(config | {"class_names": names}, ensure_ascii=False)
    (folder / "config.json").write_text(text, "utf-8-sig")
    code = (
        "import pathlib, sys\n"
        "from models.checkpoint import load_config\n"
        "print(ascii(load_config(pathlib.Path(sys.argv[1])).class_names[0]))\n"
    )
    ascii_locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=Path(__file__).resolve().parents[2],
        env=dict(os.environ) | ascii_locale,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "'caf\\xe9'\n", done.stderr


def test_loading_unpickles_nothing(folder: Path) -> None:
    """In a process of its own, where any unpickling fails."""
    code = (
        "import pickle, sys, pathlib, torch\n"
        "from models.checkpoint import load_checkpoint\n"
        "def refuse(*_, **__): raise SystemExit('unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse\n"
        "load_checkpoint(pathlib.Path(sys.argv[1]))\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_image_shape_and_classes_of_a_config() -> None:
    assert ModelConfig("dit", {}).image_shape == (3, 32, 32)
    assert ModelConfig("dit", {"image_channels": 1, "image_size": 64}).image_shape == (1, 64, 64)
    assert UNET_CONFIG.num_classes == 2
    assert build_model(UNET_CONFIG).num_classes == 2


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, folder / "model.safetensors")
    edit(folder, sha256="")
    with pytest.raises(CheckpointError, match="not finite"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "sampling",
    [
        {"stepz": 3},
        {"steps": 0},
        {"steps": "ten"},
        {"sampler": "heun"},
        {"guidance": None},
        {"guidance_interval": [1]},
        {"spacing": "linear"},
    ],
    ids=str,
)
def test_impossible_defaults_are_refused_when_the_checkpoint_is_read(
    sampling: dict[str, Any], folder: Path
) -> None:
    edit(folder, sampling=sampling)
    with pytest.raises(CheckpointError, match="sampling"):
        load_config(folder)
    edit(folder, sampling={}, qualities={"draft": sampling})
    with pytest.raises(CheckpointError, match="qualities: draft"):
        load_config(folder)


def test_a_model_that_cannot_space_its_steps_evenly_is_refused(folder: Path) -> None:
    """Warm-ups do, whatever the default is."""
    edit(folder, schedule="flow", prediction="eps", sampling={"spacing": "karras"})
    with pytest.raises(CheckpointError, match="eps prediction says nothing about x0"):
        load_config(folder)


def test_named_ways_to_sample(folder: Path) -> None:
    edit(folder, sampling={"steps": 8, "guidance": 2}, qualities={"draft": {"steps": 2}})
    named = load_config(folder).named_sampling
    assert [named[name]["steps"] for name in ("draft", "default", "best")] == [2, 8, 8]
    assert named["draft"]["guidance"] == 2
    assert named["best"] == named["default"]
    edit(folder, qualities={"fast": {}})
    with pytest.raises(CheckpointError, match="draft and best, not fast"):
        load_config(folder)


def test_weights_that_cannot_be_read_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("models.checkpoint.sha256_of", refuse)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: Permission denied"):
        load_checkpoint(folder)
