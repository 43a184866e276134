"""The training loop: it resumes exactly, shares batches among processes, and learns."""

import csv
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoint import load_checkpoint
from tests.training.conftest import TINY
from tests.training.runs import ALONE, Config, assert_same, cut_off
from training.data import Data
from training.processes import Processes
from training.state import STATE
from training.train import FINAL_LR, Trainer, batch_indices, train

ROOT = Path(__file__).resolve().parents[2]


def losses(folder: Path) -> list[tuple[str, str, str]]:
    """All of loss.csv but the clock."""
    with (folder / "loss.csv").open(newline="") as file:
        return [(row["step"], row["loss"], row["lr"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("model", "few_step"),
    [("dit", False), ("unet", False), ("dit", True)],
    ids=["dit", "unet", "few-dit"],
)
def test_resume_continues_bit_exactly(model: str, few_step: bool, tiny_config: Config, tmp_path: Path) -> None:
    if few_step:
        source = train(tiny_config(model, out=tmp_path / "source"))
        arguments = tiny_config(model).arguments | {"few_step": True}
        tiny_config = partial(tiny_config, few_step=True, init_from=source, arguments=arguments)
    straight = train(tiny_config(model, out=tmp_path / "straight"))
    with cut_off(5):  # two steps behind the last state
        train(tiny_config(model))
    assert len(losses(tiny_config().out)) == 5
    resumed = train(tiny_config(model))

    assert_same(load_file(resumed / STATE), load_file(straight / STATE))  # weights, average, optimizer
    assert losses(resumed) == losses(straight)
    assert (resumed / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


def test_a_finished_run_is_left_alone(tiny_config: Config) -> None:
    folder = train(tiny_config(steps=2))
    before = (folder / STATE).read_bytes()
    assert train(tiny_config(steps=2)) == folder
    assert (folder / STATE).read_bytes() == before


def test_a_run_leaves_a_checkpoint_a_curve_and_samples(tiny_config: Config) -> None:
    folder = train(tiny_config(steps=4, sample_every=2))
    _, config = load_checkpoint(folder)
    assert config.architecture == "dit"
    assert config.training["images_seen"] == 4 * 8
    assert config.training["train_images"] == 3000
    assert config.training["recipe"]["lr"] == 1e-3
    assert {"seconds", "git_commit", "machine"} <= config.training.keys()
    assert [row[0] for row in losses(folder)] == ["1", "2", "3", "4"]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (folder / "samples").iterdir()) == ["000002.png", "000004.png"]


def test_the_checkpoint_holds_the_average_not_the_weights(tiny_config: Config) -> None:
    folder = train(tiny_config(steps=4))
    state, exported = load_file(folder / STATE), load_file(folder / "model.safetensors")
    average = {name.removeprefix("ema."): t.half() for name, t in state.items() if name.startswith("ema.")}
    assert_same(exported, average)
    assert any(not torch.equal(exported[name], state[f"model.{name}"].half()) for name in exported)


def run_processes(count: int, out: Path, steps: int, *more: str) -> dict[str, Tensor]:
    """Train under torchrun on the CPU, in processes of their own; returns the state."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["--local-addr=127.0.0.1"]  # the name of the machine may lead nowhere, and the search takes minutes
    command += ["run.py", "train", "--model", "dit", "--out", str(out), "--steps", str(steps), "--batch-size", "8"]
    command += ["--arguments", json.dumps(TINY["dit"]), "--autocast", "false", *more]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(out / STATE)


@pytest.mark.parametrize("few_step", [False, True])
def test_two_processes_train_as_one(few_step: bool, tmp_path: Path) -> None:
    more = []
    if few_step:
        run_processes(1, tmp_path / "source", steps=40)  # a fresh network says zero everywhere
        more = ["--few-step", "--init-from", str(tmp_path / "source")]
    one, two = (run_processes(count, tmp_path / str(count), 2, *more) for count in (1, 2))
    assert_same(one, two, rtol=1e-4, atol=1e-6)
    gradients = [t for name, t in one.items() if name.endswith("exp_avg")]
    assert max(float(g.abs().max()) for g in gradients) > 1e-3  # the tolerance means something


def test_the_processes_see_every_image_once(tiny_config: Config) -> None:
    trainer = Trainer(tiny_config(), ALONE)
    whole, parts = trainer.draw_batch(3), []
    for rank in range(2):
        trainer.world = Processes(rank, 2, torch.device("cpu"))
        parts.append(trainer.draw_batch(3))
    for tensor, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(pieces), tensor, rtol=0, atol=0)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 7 is no multiple of the 2 processes"):
        Processes(0, 2, torch.device("cpu")).share(7)


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0.0, 0.0), (0.1, 0.085, 0.115), (0.5, 0.475, 0.525)])
def test_labels_are_dropped_at_the_given_share(
    dropout: float, low: float, high: float, tiny_config: Config
) -> None:
    trainer = Trainer(tiny_config(label_dropout=dropout, batch_size=64), ALONE)
    labels = torch.cat([trainer.draw_batch(step)[1] for step in range(50)])
    assert low <= float((labels == 10).double().mean()) <= high
    assert set(labels.tolist()) >= set(range(10))


def test_noise_times_do_not_follow_the_position_in_the_batch(tiny_config: Config) -> None:
    trainer = Trainer(tiny_config(batch_size=64), ALONE)
    halves = torch.stack([trainer.draw_batch(step)[2].view(2, 32).mean(1) for step in range(20)]).mean(0)
    assert abs(float(halves[0] - halves[1])) < 0.05


@pytest.mark.parametrize(("length", "batch"), [(10, 4), (12, 4), (3, 8), (7, 7)])
def test_every_epoch_holds_every_image_once(length: int, batch: int) -> None:
    steps = math.lcm(length, batch) // batch * 2
    indices = torch.cat([batch_indices(5, step, batch, length) for step in range(steps)]).view(-1, length)
    for epoch in indices:
        assert sorted(epoch.tolist()) == list(range(length))
    assert any(not torch.equal(a, b) for a, b in pairwise(indices))


def test_the_order_depends_on_the_seed_alone() -> None:
    assert torch.equal(batch_indices(1, 3, 8, 100), batch_indices(1, 3, 8, 100))
    assert not torch.equal(batch_indices(1, 3, 8, 100), batch_indices(2, 3, 8, 100))


def test_learning_rate_warms_up_and_falls_along_a_cosine(tiny_config: Config) -> None:
    trainer = Trainer(tiny_config(steps=100, warmup=10, lr=2e-3), ALONE)
    rates = [trainer.learning_rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([2e-4 * n for n in range(1, 11)])
    assert rates[10] == max(rates) == 2e-3
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[55] == pytest.approx(2e-3 * (FINAL_LR + 1) / 2)  # half way
    assert trainer.learning_rate(100) == pytest.approx(2e-3 * FINAL_LR)


@pytest.mark.parametrize(
    ("decay", "expected"), [(0.0, [0.5, 1, 1, 1, 1, 1, 1, 1]), (0.25, [0.5, 1, 1, 1, 1, 1, 1, (1 + FINAL_LR) / 2])]
)
def test_learning_rate_falls_at_the_end_only(decay: float, expected: list[float], tiny_config: Config) -> None:
    trainer = Trainer(tiny_config(steps=8, warmup=2, lr=1.0, decay=decay), ALONE)
    assert [trainer.learning_rate(step) for step in range(8)] == pytest.approx(expected)


def test_without_decay_a_longer_run_begins_with_the_shorter_one(tiny_config: Config, tmp_path: Path) -> None:
    straight = train(tiny_config(decay=0.0, out=tmp_path / "straight"))
    train(tiny_config(decay=0.0, steps=4))
    longer = train(tiny_config(decay=0.0))
    assert_same(load_file(longer / STATE), load_file(straight / STATE))


def test_a_run_learns_from_its_subset(tiny_config: Config) -> None:
    facts = load_checkpoint(train(tiny_config(subset="1/2", steps=1)))[1].training
    assert facts["train_images"] == 1500
    assert facts["recipe"]["subset"] == "1/2"


@pytest.mark.parametrize("model", ["dit", "unet"])
def test_a_network_overfits_a_few_images(model: str, tiny_config: Config, digits: Data) -> None:
    trainer = Trainer(tiny_config(model, lr=5e-3, steps=120, warmup=5, label_dropout=0.0), ALONE)
    trainer.data = replace(digits, train=digits.train[:4])

    seen = [float(trainer.train_step()) for _ in range(120)]
    assert sum(seen[-10:]) < sum(seen[:10]) / 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"label_dropout": 1.0}, "label_dropout must be at least 0 and below 1, got 1.0"),
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"decay": 1.5}, "decay must be at most 1, got 1.5"),
        ({"subset": "3/2"}, "subset must be a number of pictures or a part such as 1/2, got '3/2'"),
        ({"subset": "0"}, "subset must be"),
        ({"prediction": "noise"}, "noise"),
        ({"schedule": "quadratic"}, "quadratic"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_recipes_are_refused(changes: dict, message: str, tiny_config: Config) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)
