"""The four strategies are what the benchmark says they are, and all of them draw the same images."""

from collections.abc import Hashable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.batching import STRATEGIES, make_trace, replay, request_key, step_key
from models.checkpoint import load_checkpoint
from service.engine.launched import LaunchedStep
from service.engine.request import ImageTask
from service.engine.runner import ModelRunner

MAX_ROWS, REQUESTS = 6, 60


class Recorder(ModelRunner):
    """Keeps what took part in every step of the trace."""

    steps: list[list[tuple[str, int, Hashable, Hashable]]]

    def launch(self, tasks: list[ImageTask]) -> LaunchedStep:
        taking_part = [(t.request.request_id, t.step, request_key(t), step_key(t)) for t in tasks]
        if taking_part[0][0]:  # warm-up has no request ids
            self.steps.append(taking_part)
        return super().launch(tasks)


@pytest.fixture
def runner(checkpoints: Path) -> Recorder:
    model, config = load_checkpoint(checkpoints / "dit")
    recorder = Recorder(model, config, torch.device("cpu"), torch.float32, MAX_ROWS)
    recorder.steps = []
    return recorder


def images_of(runner: Recorder, name: str) -> list[np.ndarray]:
    trace = make_trace(runner, REQUESTS, seed=3)
    _, latencies, rows = replay(runner, STRATEGIES[name], trace, np.zeros(len(trace)), MAX_ROWS)
    assert len(latencies) == len(trace)
    assert 1 <= rows <= MAX_ROWS
    return [request.images[0] for request in trace]


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_strategy_keeps_its_rule(runner: Recorder, name: str) -> None:
    images_of(runner, name)
    steps = runner.steps
    match name:
        case "sequential":
            assert all(len(step) == 1 for step in steps)
        case "request":
            assert all(len({(at, key) for _, at, key, _ in step}) == 1 for step in steps)
        case "keyed step":
            assert all(len({key for *_, key in step}) == 1 for step in steps)
            assert any(len({at for _, at, *_ in step}) > 1 for step in steps)
        case "no key":
            assert any(len({key for *_, key in step}) > 1 for step in steps)
    assert len({name for step in steps for name, *_ in step}) == REQUESTS


def test_all_strategies_draw_the_same_images(runner: Recorder) -> None:
    first, *others = [images_of(runner, name) for name in STRATEGIES]
    for images in others:
        for a, b in zip(first, images, strict=True):
            assert np.abs(a.astype(int) - b).max() <= 1
