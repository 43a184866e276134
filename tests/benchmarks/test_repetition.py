"""The price of the deterministic mode is measured on requests that differ in nothing else."""

from pathlib import Path

import pytest
import torch

from benchmarks.repetition import measure, requests
from models.checkpoint import load_checkpoint
from service.engine import core
from service.engine.runner import ModelRunner


@pytest.fixture
def runner(checkpoints: Path) -> ModelRunner:
    model, config = load_checkpoint(checkpoints / "dit")
    return ModelRunner(model, config, torch.device("cpu"), torch.float32, max_rows=4)


def test_every_count_is_timed_in_every_repeat(runner: ModelRunner) -> None:
    ratios = measure(runner, rows=4, repeats=2, counts=(1, 3))
    assert {count: len(found) for count, found in ratios.items()} == {1: 2, 3: 2}
    assert all(ratio > 0 for found in ratios.values() for ratio in found)


def test_both_modes_do_the_same_work(runner: ModelRunner) -> None:
    plain, exact = (requests(runner, 8, mode) for mode in (False, True))
    assert [request.total_rows for request in plain] == [request.total_rows for request in exact]
    assert {request.params.deterministic for request in plain} == {False}
    assert {request.params.deterministic for request in exact} == {True}


def test_where_nothing_repeats_there_is_nothing_to_measure(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "find_fixed_rows", lambda runner, cap: None)
    with pytest.raises(RuntimeError, match="does not repeat itself"):
        measure(runner, rows=4, repeats=1)
