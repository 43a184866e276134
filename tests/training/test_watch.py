"""What a run measures of itself; the thresholds were chosen on long trainings, see docs/experiments.md."""

import csv
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.checkpoint import load_checkpoint
from tests.training.pictures import write_pictures
from tests.training.runs import ALONE, Config, assert_same, cut_off
from training.data import Data, Split
from training.report import MEASURED, MEASURES
from training.state import STATE
from training.train import Trainer, train
from training.watch import BEST, IMAGES, Watch, noisy_batch


def measures(folder: Path) -> list[list[str]]:
    with (folder / MEASURES).open(newline="") as file:
        head, *rows = csv.reader(file)
    assert tuple(head) == MEASURED
    return rows


def test_measuring_changes_no_weight(tiny_config: Config, tmp_path: Path) -> None:
    alone = train(tiny_config(out=tmp_path / "alone"))
    assert not (alone / MEASURES).exists()
    watched = train(tiny_config(measure_every=4))
    assert [row[0] for row in measures(watched)] == ["4", "6"]
    assert_same(load_file(watched / STATE), load_file(alone / STATE))


def test_a_killed_run_measures_every_step_once(tiny_config: Config, tmp_path: Path) -> None:
    straight = train(tiny_config(out=tmp_path / "straight", measure_every=1))
    with cut_off(5):  # two measurements behind the last state
        train(tiny_config(measure_every=1))
    resumed = train(tiny_config(measure_every=1))
    assert len(measures(resumed)) == 6
    assert measures(resumed) == measures(straight)
    best, expected = (folder / BEST / "model.safetensors" for folder in (resumed, straight))
    assert best.read_bytes() == expected.read_bytes()


def test_the_best_checkpoint_is_that_of_the_lowest_held_out_loss(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([5.0, 5.0, 3.0, 3.0, 2.0, 2.0, 4.0, 4.0, 2.0, 2.0, 3.0, 3.0])  # held out and train, by turns
    monkeypatch.setattr(Watch, "losses", lambda *_: [next(losses)] * 4)
    folder = train(tiny_config(measure_every=1))
    assert load_checkpoint(folder / BEST)[1].training["steps"] == 3
    assert load_checkpoint(folder)[1].training["steps"] == 6


def test_the_best_is_remembered_over_a_stop(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "losses", lambda *_: [2.0] * 4)
    folder = train(tiny_config(measure_every=1, steps=2, decay=0.0))
    monkeypatch.setattr(Watch, "losses", lambda *_: [3.0] * 4)
    train(tiny_config(measure_every=1, decay=0.0))
    assert load_checkpoint(folder / BEST)[1].training["steps"] == 1


def test_the_warning_comes_once(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [(0.9, 0.8), (0.902, 0.5), (0.8, 0.5), (0.81, 0.5), (0.82, 0.5), (0.83, 0.5)]
    losses = iter([loss for pair in pairs for loss in pair])  # held out and train
    monkeypatch.setattr(Watch, "losses", lambda *_: [next(losses)] * 4)
    with caplog.at_level(logging.WARNING, "training.watch"):
        train(tiny_config(measure_every=1, steps=5, decay=0.0))
        train(tiny_config(measure_every=1, decay=0.0))
    (record,) = caplog.records
    assert record.getMessage().startswith("step 4: the loss is 62 % higher on held-out pictures")
    assert record.getMessage().endswith(f"lowest held-out loss was at step 3, see {tiny_config().out / BEST}")


@pytest.mark.parametrize(
    ("held_out", "train", "copies", "warns"),
    [
        (1.02, 0.80, 0.0, True),
        (1.02, 0.83, 0.0, False),  # held out 23 % above training
        (1.00, 0.70, 0.0, False),  # as low as ever
        (1.00, 0.70, 1 / 32, True),
        (1.00, 0.90, 1 / 32, False),  # alike by chance
    ],
)
def test_a_gap_that_grows_while_the_held_out_loss_rises_warns(
    held_out: float, train: float, copies: float, warns: bool, tiny_config: Config, digits: Data, tmp_path: Path
) -> None:
    config = Trainer(tiny_config(), ALONE).model_config
    watch = Watch(tmp_path, digits, config, autocast=False, step=0)
    assert not watch.note(1, 1.0, 0.9, 0.0)
    assert watch.note(2, held_out, train, copies) is warns


def test_the_held_out_loss_is_told_by_noise(tiny_config: Config, digits: Data) -> None:
    """A fresh network answers zero, so its loss is the mean square of the pictures over that of the noise."""
    folder = train(tiny_config(steps=1, measure_every=1, lr=1e-12))
    ((_, held_out, _, _, *quarters),) = (list(map(float, row)) for row in measures(folder))
    assert held_out == pytest.approx(sum(quarters) / 4, abs=1e-6)
    x0, _, u, _ = noisy_batch(digits.test)
    squares = x0.square().mean((1, 2, 3)) / u.clamp(min=0.1).square()
    assert quarters == pytest.approx([float(squares[i].mean()) for i in u.argsort().chunk(4)], rel=1e-3)


def test_copies_are_counted(tiny_config: Config, digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = digits.train.images[:32].float() / 127.5 - 1
    monkeypatch.setattr("training.watch.generate", lambda *_: copies)
    folder = train(tiny_config(measure_every=6))
    assert measures(folder)[0][3] == "1.0000"


@pytest.mark.parametrize("changes", [{"measure_every": 0}, {"data": "folder", "hold_out": 0.0}])
def test_a_run_without_held_out_pictures_measures_nothing(
    changes: dict, tiny_config: Config, tmp_path: Path
) -> None:
    pets = write_pictures(tmp_path / "pets", {"cat": 10, "dog": 10})
    folder = train(tiny_config(**({"steps": 1, "data_path": pets, "measure_every": 1} | changes)))
    assert not (folder / MEASURES).exists()
    assert not (folder / BEST).exists()


def test_the_batch_is_the_same_and_holds_every_picture(digits: Data) -> None:
    few = digits.train[:100]
    x0, labels, u, eps = noisy_batch(few)
    assert len(x0) == len(labels) == len(u) == len(eps) == IMAGES
    assert len({image.numpy().tobytes() for image in x0}) == 100
    assert all(torch.equal(a, b) for a, b in zip(noisy_batch(few), (x0, labels, u, eps), strict=True))
    assert abs(float(u[:64].mean() - u[64:].mean())) < 0.2
    assert len(noisy_batch(Split(few.images[:1], few.labels[:1]))[0]) == IMAGES
