"""A short soak, for real; and that the report sees what is wrong."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.soak import Report, Sample, Soak, is_due, soak


def test_nothing_is_lost_and_nothing_is_left() -> None:
    report = asyncio.run(soak(requests=3000, clients=16, samples=8))
    assert report.faults == []
    assert sum(report.answers.values()) == 3000
    assert set(report.answers) == {"picture", "stream", "hung up"}
    assert min(report.answers.values()) > 50
    assert report.counted["cancelled"] > 50
    assert 1 < len(report.samples) <= 8


def test_no_more_samples_are_taken_than_were_asked_for() -> None:
    """Not even when every request was sent and the last answers are still on their way."""
    taken = 0
    for done in [*range(0, 3001, 50), 3000, 3000]:
        taken += is_due(taken, done, requests=3000, samples=8)
    assert taken == 8


SAMPLES = [Sample(100 * i, float(i), 300.0, 8, 40) for i in range(8)]
FINE = Report(
    answers={"picture": 90, "stream": 5, "hung up": 5},
    counted={"ok": 96, "cancelled": 4, "rejected": 0, "expired": 0, "error": 0},
    left={"running_slots": 0.0, "queue_depth": 0.0},
    samples=SAMPLES,
)


def test_a_healthy_report() -> None:
    assert FINE.faults == []


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (replace(FINE, answers=FINE.answers | {"status 500": 1}), "1 requests: status 500"),
        (replace(FINE, answers=FINE.answers | {"broken: ServerDisconnectedError": 2}), "ServerDisconnectedError"),
        (replace(FINE, left={"running_slots": 1.0}), "running_slots is 1"),
        (replace(FINE, counted=FINE.counted | {"ok": 94}), "counted 94 answers, the clients 95"),
        (replace(FINE, counted=FINE.counted | {"ok": 101}), "counted 101 answers, the clients 95"),
        (replace(FINE, counted=FINE.counted | {"error": 9}), "more requests than were sent"),
        (replace(FINE, samples=[*SAMPLES, Sample(900, 9.0, 330.0, 8, 40)]), "grew from 300 to 330 MiB"),
        (replace(FINE, samples=[*SAMPLES, Sample(900, 9.0, 300.0, 9, 40)]), "threads grew from 8 to 9"),
        (replace(FINE, samples=[*SAMPLES, Sample(900, 9.0, 300.0, 8, 60)]), "open files grew from 40 to 60"),
    ],
)
def test_faults_are_seen(broken: Report, fault: str) -> None:
    assert any(fault in found for found in broken.faults)


def test_a_request_without_an_answer_is_a_fault() -> None:
    class Silent:
        @property
        def session(self) -> Any:
            raise TimeoutError  # as aiohttp does after five minutes

    run = Soak(Silent(), requests=1)  # pyright: ignore[reportArgumentType]
    asyncio.run(run.client())
    assert run.answers == {"broken: TimeoutError": 1}
