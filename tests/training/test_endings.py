"""How a run ends otherwise than planned, and what it refuses to write over."""

import fcntl
import json
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.checkpoint import CheckpointError, load_checkpoint
from run import main
from tests.training.conftest import TINY
from tests.training.pictures import write_pictures
from tests.training.runs import ALONE, Config, assert_same, at_step
from training.run_folder import LOCK
from training.state import PREVIOUS, STATE, StateError
from training.stop import Stopped, deferred_signals
from training.train import Trainer, train


def signalled(number: signal.Signals, step: int) -> AbstractContextManager[None]:
    """The process gets the signal during that step."""
    return at_step(step - 1, lambda: os.kill(os.getpid(), number))


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != LOCK}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_loses_no_step(number: signal.Signals, tiny_config: Config, tmp_path: Path) -> None:
    straight = train(tiny_config(out=tmp_path / "straight"))
    with signalled(number, step=2), pytest.raises(Stopped) as stopped:
        train(tiny_config())
    folder = tiny_config().out
    sentence = f"stopped by {number.name}: step 2 of 6 is saved in {folder}, the same command goes on from there"
    assert str(stopped.value) == sentence
    assert load_checkpoint(folder)[1].training["steps"] == 2
    assert not list(folder.glob("*.tmp"))
    train(tiny_config())
    assert_same(load_file(folder / STATE), load_file(straight / STATE))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_line_says_how_to_go_on(
    number: signal.Signals, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--model", "dit", "--steps", "4", "--batch-size", "4", "--out", str(tmp_path / "run")]
    command += ["--arguments", json.dumps(TINY["dit"])]
    with signalled(number, step=1):
        assert main(command) == code
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"stopped by {number.name}: step 1 of 4 is saved in")
    assert main(command) == 0


def test_a_signal_in_the_last_step_does_not_matter(tiny_config: Config) -> None:
    with signalled(signal.SIGTERM, step=6):
        folder = train(tiny_config())
    assert (folder / "loss.png").exists()


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """SIGINT and SIGTERM as in a terminal: in a shell's background job SIGINT is ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_signals")
def test_a_second_signal_ends_at_once() -> None:
    with deferred_signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("place", ["training.info.describe", "run.add_train"])  # the second imports torch
def test_an_interrupt_outside_a_training_prints_one_word(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)
    assert main(["info", "--model", "dit"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_checkpoint_that_the_run_did_not_make_is_kept(tiny_config: Config) -> None:
    folder = train(tiny_config())
    for name in (STATE, PREVIOUS):
        (folder / name).unlink()
    before = files(folder)
    with pytest.raises(
        StateError, match=f"{folder} holds a checkpoint that this run did not make.*--init-from {folder}"
    ):
        train(tiny_config())
    assert files(folder) == before


def test_a_folder_belongs_to_one_run(tiny_config: Config) -> None:
    folder = tiny_config().out
    folder.mkdir()
    (folder / LOCK).write_text("4711")
    with (folder / LOCK).open() as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(StateError, match=rf"{folder} is in use by another run \(process 4711\)"):
            train(tiny_config())
        assert [p.name for p in folder.iterdir()] == [LOCK]
    assert train(tiny_config()) == folder
    assert (folder / LOCK).read_text() == str(os.getpid())


def test_what_a_killed_run_left_half_written_is_cleared(tiny_config: Config) -> None:
    folder = tiny_config().out
    folder.mkdir()
    (folder / f"{STATE}.tmp").write_bytes(b"half")
    train(tiny_config())
    assert not list(folder.glob("*.tmp"))


def test_a_finished_run_goes_on_with_more_steps(tiny_config: Config) -> None:
    folder = train(tiny_config())
    first = load_file(folder / STATE)
    train(tiny_config(steps=9))
    facts = load_checkpoint(folder)[1].training
    assert (facts["steps"], facts["recipe"]["steps"], facts["finished_at"]) == (9, 9, [6])
    assert len((folder / "loss.csv").read_text().splitlines()) == 1 + 9
    assert any(not torch.equal(first[name], tensor) for name, tensor in load_file(folder / STATE).items())
    train(tiny_config(steps=12))
    assert load_checkpoint(folder)[1].training["finished_at"] == [6, 9]
    with pytest.raises(StateError, match="lr was 0.001, now 0.002; seed was 0, now 1. Use"):
        train(tiny_config(steps=15, lr=2e-3, seed=1))


def test_an_unfinished_run_keeps_its_steps(tiny_config: Config) -> None:
    with signalled(signal.SIGINT, step=2), pytest.raises(Stopped):
        train(tiny_config())
    with pytest.raises(StateError, match="steps was 6, now 9"):
        train(tiny_config(steps=9))


def test_a_run_starts_from_the_weights_of_a_checkpoint(tiny_config: Config, tmp_path: Path) -> None:
    source = train(tiny_config())
    config = tiny_config(init_from=source, out=tmp_path / "more", lr=1e-4)
    start = Trainer(config, ALONE)
    weights = load_checkpoint(source)[0].state_dict()
    for network in (start.model, start.ema.model):
        assert_same(dict(network.state_dict()), dict(weights))
    facts = load_checkpoint(train(config))[1].training
    assert facts["init_sha256"] == load_checkpoint(source)[1].sha256
    assert train(config) == tmp_path / "more"
    with pytest.raises(StateError, match="init_sha256 was .*, now unknown"):
        train(tiny_config(out=tmp_path / "more", lr=1e-4))


def test_classes_of_the_same_name_keep_what_was_learnt(tiny_config: Config, tmp_path: Path) -> None:
    """Of the digits' classes "7" is one of these pictures', and "cat" is new."""
    source = train(tiny_config())
    pets = write_pictures(tmp_path / "pets", {"7": 4, "cat": 4})
    config = tiny_config(init_from=source, out=tmp_path / "more", data="folder", data_path=pets, hold_out=0.0)
    trained, start = load_checkpoint(source)[0].state_dict(), Trainer(config, ALONE).model.state_dict()
    table, known = start.pop("condition.label.weight"), trained.pop("condition.label.weight")
    assert_same(dict(start), dict(trained))
    assert torch.equal(table[[0, 2]], known[[7, 10]])
    assert not any(torch.equal(table[1], row) for row in known)
    message = r'init_from: class_names of .* is \["0", .*, of this run \["7", "cat"\]'
    with pytest.raises(CheckpointError, match=message):
        Trainer(replace(config, few_step=True, arguments=config.arguments | {"few_step": True}), ALONE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosine"}, 'init_from: schedule of .* is "flow", of this run "cosine"'),
        ({"arguments": {"hidden_dim": 32, "depth": 2, "num_heads": 2}}, "init_from: arguments of"),
        ({"model": "unet"}, "init_from: architecture of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_weights_of_another_network_are_refused(
    changes: dict[str, Any], message: str, tiny_config: Config, tmp_path: Path
) -> None:
    source = train(tiny_config(steps=1))
    with pytest.raises(CheckpointError, match=message):
        train(tiny_config(**{"init_from": source, "out": tmp_path / "more"} | changes))


def test_init_from_needs_weights(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="init_from: .*nowhere/model.safetensors cannot be read"):
        train(tiny_config(init_from=tmp_path / "nowhere"))
