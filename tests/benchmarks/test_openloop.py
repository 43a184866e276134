"""The open loop against a real server for a moment, and what it makes of its answers."""

import asyncio
import math
from pathlib import Path

import pytest

from benchmarks import openloop
from benchmarks.openloop import KINDS, Answer, Kind, Load, capacity, measure, plot, table

ALONE = dict.fromkeys(KINDS, 1.0)


def load(answers: list[Answer], seconds: float = 10.0) -> Load:
    return Load(1.0, seconds, answers, ALONE, 300.0, [])


def longest_of(model: str) -> Kind:
    return max((kind for kind in KINDS if kind.model == model), key=lambda kind: (kind.steps, kind.guidance))


def answer(due: float, latency: float, status: int = 200) -> Answer:
    return Answer(KINDS[0], due, latency, status)


def test_three_times_the_capacity_is_answered_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the longest request of each model only, so that few requests are a load."""
    monkeypatch.setattr(openloop, "KINDS", [longest_of(model) for model in openloop.COSTS])
    monkeypatch.setattr(openloop, "REPEATS", 1)
    monkeypatch.setattr(openloop, "CALM_SECONDS", 1.0)
    measured = asyncio.run(measure([3.0], seconds=3))[0]
    assert {each.status for each in measured.answers} == {200, 503}  # every request has its answer
    assert len(measured.loaded) > 2 * capacity() * measured.seconds
    assert 0 < measured.share(503) < 1
    assert all(1 <= wait < 120 for wait in measured.retry_after)
    assert table([measured]).count("\n") == 2
    plot([measured], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_only_answers_in_time_are_goodput() -> None:
    mixed = [answer(1, 0.5), answer(2, 2.9), answer(3, 3.1), answer(4, 0.1, 503), answer(5, 1, 0), answer(12, 1)]
    assert load(mixed).goodput == 0.2
    assert load(mixed).share(503) == 0.2
    assert list(load(mixed).slowdowns) == [0.5, 2.9, 3.1]


def test_recovery_is_the_moment_from_which_nearly_all_are_in_time() -> None:
    late = [answer(10 + t, 9) for t in (0.1, 0.4)]
    fine = [answer(11 + t / 10, 1) for t in range(20)]
    assert load(late + fine).recovery_seconds == pytest.approx(0.4, abs=0.6)
    assert load(fine).recovery_seconds == 1.0
    assert load(late).recovery_seconds == math.inf
    assert load([*fine, answer(15, 9), answer(15.1, 9), answer(15.2, 9)]).recovery_seconds == math.inf


def test_half_of_the_capacity_goes_to_each_model() -> None:
    # 34.5 evaluations a request on the average; a full step of 32 rows takes 26.4 ms (dit) or 56 ms (unet)
    assert capacity() == pytest.approx(1 / (34.5 * (26.4 + 56) / 2 / 32 / 1000))
