"""What a run refuses to continue, what it survives, and what it leaves behind when it fails."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from models.checkpoint import ModelConfig, build_model, load_checkpoint, save_checkpoint
from tests.training.conftest import TINY
from tests.training.pictures import write_pictures
from tests.training.runs import ALONE, Config, cut_off
from training.state import STATE, StateError
from training.train import Trainer, TrainingDiverged, train


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"model": "unet", "arguments": TINY["unet"]}, 'model was "dit", now "unet"'),
        ({"arguments": {"hidden_dim": 32, "depth": 1, "num_heads": 4}}, 'arguments was .*"num_heads": 2.*, now '),
        ({"lr": 2e-3}, "lr was 0.001, now 0.002"),
        ({"steps": 4}, "steps was 6, now 4"),
        ({"seed": 1}, "seed was 0, now 1"),
        ({"autocast": True}, "autocast was false, now true"),
        ({"prediction": "v"}, 'prediction was "x0", now "v"'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_recipe_does_not_continue_a_run(
    changes: dict[str, Any], difference: str, tiny_config: Config
) -> None:
    folder = train(tiny_config())
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    with pytest.raises(
        StateError,
        match=rf"{folder / STATE} belongs to another run: {difference}.*another folder, or delete {folder}",
    ):
        train(tiny_config(**changes))
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_other_images_do_not_continue_a_run(tiny_config: Config, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pets", {"cat": 5})
    recipe: dict[str, Any] = {"data": "folder", "data_path": tmp_path / "pets", "steps": 2}
    folder = train(tiny_config(**recipe))
    moved = (tmp_path / "pets").rename(tmp_path / "animals")
    assert train(tiny_config(**recipe | {"data_path": moved})) == folder
    for i in range(5):
        Image.new("RGB", (32, 32), (0, 40 * i, 0)).save(moved / "cat" / f"{i}.png")
    told = r'another run: the pictures in --data-path have changed since the run began \(train_sha256 was "'
    with pytest.raises(StateError, match=told):
        train(tiny_config(**recipe | {"data_path": moved}))


def test_a_run_continues_in_another_place(tiny_config: Config, tmp_path: Path) -> None:
    with cut_off(3):
        train(tiny_config())
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    threads = torch.get_num_threads()
    train(tiny_config(out=moved, threads=threads, checkpoint_every=2, sample_every=5))
    facts = load_checkpoint(moved)[1].training
    assert facts["steps"] == 6
    assert not {"out", "data_path", "threads", "checkpoint_every", "sample_every"} & facts["recipe"].keys()
    assert {"model", "data", "arguments", "steps", "lr", "seed", "autocast"} <= facts["recipe"].keys()


@pytest.mark.parametrize(
    ("bf16", "given", "used"),
    [(True, None, True), (False, None, False), (False, True, True), (True, False, False)],
)
def test_autocast_is_chosen_by_the_processor_unless_given(
    bf16: bool,
    given: bool | None,
    used: bool,
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": bf16})
    casts = []
    monkeypatch.setattr(torch, "autocast", spy(torch.autocast, casts))
    folder = train(tiny_config(steps=1, autocast=given))
    assert casts == [used]
    assert load_checkpoint(folder)[1].training["recipe"]["autocast"] is used


def spy(autocast: Any, seen: list[bool]) -> Any:
    def recorded(device: str, dtype: torch.dtype, enabled: bool) -> Any:
        seen.append(enabled)
        return autocast(device, dtype, enabled=enabled)

    return recorded


def nan_loss(loss: Tensor, trainer: Trainer) -> Tensor:
    return loss * float("nan")


def infinite_loss(loss: Tensor, trainer: Trainer) -> Tensor:
    return loss + float("inf")


def nan_gradient(loss: Tensor, trainer: Trainer) -> Tensor:
    return loss + (next(trainer.model.parameters()).sum() * 0).sqrt()  # 0, but its slope is infinite times 0


@pytest.mark.parametrize("accident", [nan_loss, infinite_loss, nan_gradient])
def test_a_run_that_diverges_keeps_its_last_good_state(
    accident: Callable[[Tensor, Trainer], Tensor],
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loss = Trainer.loss
    monkeypatch.setattr(Trainer, "loss", lambda self: accident(loss(self), self) if self.step == 4 else loss(self))
    with pytest.raises(TrainingDiverged, match=r"diverged at step 5: .*lower --lr.* another --out"):
        train(tiny_config(steps=9))
    folder = tiny_config().out
    monkeypatch.setattr(Trainer, "loss", loss)
    trainer = Trainer(tiny_config(steps=9), ALONE)
    assert trainer.step == 3
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert load_checkpoint(folder)[1].training["steps"] == 3


def test_weights_that_cannot_be_exported_do_not_replace_the_state(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = Trainer.train_step

    def exploding(self: Trainer) -> Tensor:
        loss = train_step(self)
        if self.step == 6:
            next(self.ema.model.parameters()).fill_(1e6)  # finite, but beyond float16
        return loss

    monkeypatch.setattr(Trainer, "train_step", exploding)
    with pytest.raises(TrainingDiverged, match=r"diverged at step 6: a weight is not finite in float16"):
        train(tiny_config())
    assert Trainer(tiny_config(), ALONE).step == 3


def lost(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def stale(path: Path) -> None:
    """As after a kill between the two files of an export."""
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"sha256": "0" * 64}))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lost),
        ("config.json", lost),
        ("model.safetensors", cut),
        ("config.json", cut),
        ("config.json", stale),
    ],
)
def test_a_finished_run_repairs_its_checkpoint(
    name: str, damage: Callable[[Path], None], tiny_config: Config
) -> None:
    folder = train(tiny_config())
    weights = (folder / "model.safetensors").read_bytes()
    damage(folder / name)
    assert train(tiny_config()) == folder
    assert load_checkpoint(folder)[1].training["steps"] == 6
    assert (folder / "model.safetensors").read_bytes() == weights


def test_a_finished_run_replaces_an_older_export(tiny_config: Config) -> None:
    folder = train(tiny_config())
    weights = (folder / "model.safetensors").read_bytes()
    model, config = load_checkpoint(folder)
    torch.nn.init.zeros_(next(model.parameters()))
    save_checkpoint(folder, model, ModelConfig("dit", config.arguments, training={"steps": 3}))
    train(tiny_config())
    assert (folder / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("kill_at", [0, 1], ids=["before-the-weights", "before-the-config"])
def test_a_kill_during_an_export_leaves_whole_files(
    kill_at: int, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train(tiny_config())
    old = {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json")}
    config = load_checkpoint(folder)[1]
    replaced, replace = [], os.replace

    def killed(source: Path, target: Path) -> None:
        if len(replaced) == kill_at:
            raise KeyboardInterrupt
        replaced.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, build_model(config), config)
    monkeypatch.setattr(os, "replace", replace)
    assert replaced == ["model.safetensors"][:kill_at]
    assert [name for name in old if (folder / name).read_bytes() == old[name]] == list(old)[kill_at:]
    train(tiny_config())
    assert {name: (folder / name).read_bytes() for name in old}["model.safetensors"] == old["model.safetensors"]
    assert load_checkpoint(folder)[1].training["steps"] == 6


def test_checkpoints_have_the_permissions_that_the_umask_leaves(tiny_config: Config, tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        folder = train(tiny_config(steps=1))
    finally:
        os.umask(mask)
    files = ("model.safetensors", "config.json", "state.safetensors", "loss.csv")
    assert [(folder / name).stat().st_mode & 0o777 for name in files] == [0o644] * 4
    assert not list(folder.glob("*.tmp"))
