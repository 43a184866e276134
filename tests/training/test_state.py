"""The state that a run resumes from: exact, checked, and never lost."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from training.config import LATER
from training.ema import EMA
from training.state import PREVIOUS, STATE, Progress, StateError, differences, load_state, save_state

RECIPE = {"lr": 0.01, "arguments": {"depth": 2}}
Run = tuple[nn.Module, EMA, torch.optim.Optimizer]


def a_run(width: int = 4, seed: int = 0) -> Run:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, 3), nn.Linear(3, 1))
    return model, EMA(model, 0.9), torch.optim.AdamW(model.parameters(), 1e-2)


def advance(run: Run) -> None:
    model, ema, optimizer = run
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    ema.update(model, 0)


def test_a_state_is_restored_bit_exactly(tmp_path: Path) -> None:
    saved, restored = a_run(seed=0), a_run(seed=1)
    advance(saved)
    save_state(tmp_path, *saved, progress=Progress(7, 12.5), recipe=RECIPE)
    assert load_state(tmp_path, *restored, RECIPE) == Progress(7, 12.5)
    for run in (saved, restored):
        advance(run)
    for a, b in zip(saved[:2], restored[:2], strict=True):
        weights = [(m.model if isinstance(m, EMA) else m).state_dict() for m in (a, b)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [p.name for p in tmp_path.iterdir()] == [STATE]


def test_no_state_is_a_fresh_run(tmp_path: Path) -> None:
    assert load_state(tmp_path, *a_run(), RECIPE) == Progress()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_tensors(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)


def no_facts(path: Path) -> None:
    model, ema, _ = a_run()
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    save_file(tensors | {f"ema.{k}": v for k, v in ema.model.state_dict().items()}, path)


@pytest.mark.parametrize("damage", [truncate, empty, other_tensors, no_facts])
def test_a_damaged_state_is_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    save_state(tmp_path, *a_run(), progress=Progress(1, 1.0), recipe=RECIPE)
    damage(tmp_path / STATE)
    with pytest.raises(StateError, match=r"state\.safetensors cannot be resumed: .*Use another folder"):
        load_state(tmp_path, *a_run(), RECIPE)


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, *a_run(), progress=Progress(1, 1.0), recipe=RECIPE)
    with pytest.raises(StateError, match="size mismatch"):
        load_state(tmp_path, *a_run(width=5), RECIPE)


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        ({"lr": 0.02, "arguments": {}}, r'lr was 0.01, now 0.02; arguments was {"depth": 2}, now {}'),
        ({"lr": 0.01, "arguments": {"depth": 3}}, r'arguments was {"depth": 2}, now {"depth": 3}'),
        ({"lr": 0.01, "arguments": {"depth": 2}, "momentum": 0.9}, "momentum was not recorded, now 0.9"),
        ({"lr": 0.01}, r'arguments was {"depth": 2}, now unknown'),
    ],
    ids=["two", "nested", "new", "gone"],
)
def test_a_state_of_another_recipe_is_refused(now: dict, difference: str, tmp_path: Path) -> None:
    save_state(tmp_path, *a_run(), progress=Progress(1, 1.0), recipe=RECIPE)
    fresh = a_run(seed=1)
    before = {name: tensor.clone() for name, tensor in fresh[0].state_dict().items()}
    with pytest.raises(StateError, match=f"belongs to another run: {difference}. Use another folder, or delete"):
        load_state(tmp_path, *fresh, now)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh[0].state_dict().items())


def test_changed_pictures_are_told_in_words() -> None:
    known, now = {"lr": 1, "subset": "", "train_sha256": "a"}, {"lr": 1, "subset": "", "train_sha256": "b"}
    sentence = 'the pictures in --data-path have changed since the run began (train_sha256 was "a", now "b")'
    assert differences(known, now) == sentence
    assert differences(known | {"lr": 2}, now) == f"lr was 2, now 1; {sentence}"
    other = 'subset was "9", now ""; train_sha256 was "a", now "b"'  # which makes other pictures of the same files
    assert differences(known | {"subset": "9"}, now) == other
    assert differences({"lr": 1, "subset": ""}, now) == 'train_sha256 was not recorded, now "b"'


def test_a_recipe_may_be_written_in_another_way(tmp_path: Path) -> None:
    written = {"arguments": {"channel_multipliers": (1, 2), "base_channels": 8}}
    save_state(tmp_path, *a_run(), progress=Progress(1, 1.0), recipe=written)
    same = {"arguments": {"base_channels": 8, "channel_multipliers": [1, 2]}}
    assert load_state(tmp_path, *a_run(), same).step == 1


def test_a_state_older_than_a_field_had_its_default(tmp_path: Path) -> None:
    save_state(tmp_path, *a_run(), progress=Progress(1, 1.0), recipe=RECIPE)
    assert load_state(tmp_path, *a_run(), RECIPE | LATER).step == 1
    with pytest.raises(StateError, match=r"another run: decay was 1.0, now 0.0\. "):
        load_state(tmp_path, *a_run(), RECIPE | LATER | {"decay": 0.0})


def test_the_state_before_the_last_one_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2, 3):
        save_state(tmp_path, *a_run(), progress=Progress(step, 1.0), recipe=RECIPE)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([STATE, PREVIOUS])
    empty(tmp_path / STATE)
    assert load_state(tmp_path, *a_run(), RECIPE).step == 2
    assert f"{STATE} cannot be resumed" in caplog.text
    assert f"Going on from step 2 of {PREVIOUS}" in caplog.text
    assert load_state(tmp_path, *a_run(), RECIPE).step == 2  # as after a power cut between two renames
    save_state(tmp_path, *a_run(), progress=Progress(4, 1.0), recipe=RECIPE)
    empty(tmp_path / STATE)
    assert load_state(tmp_path, *a_run(), RECIPE).step == 2  # the damaged state did not take the sound one's place
    empty(tmp_path / PREVIOUS)
    with pytest.raises(StateError, match="cannot be resumed"):
        load_state(tmp_path, *a_run(), RECIPE)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_a_state_has_the_mode_that_the_umask_leaves(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        save_state(tmp_path, *a_run(), progress=Progress(1, 1.0), recipe=RECIPE)
    finally:
        os.umask(before)
    assert (tmp_path / STATE).stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, *a_run(), progress=Progress(1, 1.0), recipe=RECIPE)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path, *a_run(), progress=Progress(2, 2.0), recipe=RECIPE)
    assert [p.name for p in tmp_path.iterdir()] == [STATE]
    assert load_state(tmp_path, *a_run(), RECIPE).step == 1


def test_file_and_folder_are_synced_around_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda d: (calls.append(Path(os.readlink(f"/proc/self/fd/{d}")).name), fsync(d))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    save_state(tmp_path, *a_run(), progress=Progress(1, 1.0), recipe=RECIPE)
    assert calls == [f"{STATE}.tmp", "rename", tmp_path.name]
