"""Summarises the answers of a workload as plain data for docs/serving.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.serving.load import OK, REFUSED, Answer
from benchmarks.serving.workloads import TARGET_FACTOR, Device, Open, Workload

DROPPED = 0.2  # share of the time at its start that does not count
BUSY = 0.05  # cores used elsewhere that disturb: with 8 % of two cores stolen, W5 gave 142 good answers/s, not 160


@dataclass(frozen=True)
class Cost:
    """CPU seconds between the start and the end of what is counted."""

    server: float  # all its processes
    engine: float  # of this service; 0 for others
    client: float
    elsewhere: float  # other programs of the machine, and what its hypervisor took
    seconds: float


def window(workload: Workload, answers: Sequence[Answer] = ()) -> tuple[float, float]:
    """Start and end of what counts, by the time at which a request was due."""
    if isinstance(workload, Open):
        phases = [seconds for _, seconds in workload.phases]
        return (DROPPED * phases[0], phases[0]) if len(phases) == 1 else (phases[0], phases[0] + phases[1])
    # the ideal server ends a closed loop early, after CLOSED_REQUESTS
    end = min(workload.seconds, max((a.due + a.latency for a in answers), default=workload.seconds))
    return DROPPED * end, end


def summarise(
    workload: Workload, answers: list[Answer], rows: float | None = None, cost: Cost | None = None
) -> dict[str, Any]:
    """The figures of a run by name: latencies in ms, rates a second, CPU time in ms an answer and in cores.

    rows: that the device ran for all requests; None if the server does not report it.
    """
    start, end = window(workload, answers)
    counted = [a for a in answers if start <= a.due < end]
    done = [a for a in counted if a.outcome == OK]
    in_window = [a for a in answers if a.outcome == OK and start <= a.due + a.latency < end]
    p50, p95 = np.quantile([1000 * a.latency for a in done], (0.5, 0.95)) if done else (None, None)
    found = {
        "sent": len(counted),
        "outcomes": {o: sum(a.outcome == o for a in counted) for o in sorted({a.outcome for a in counted})},
        "answers": len(in_window) / (end - start),
        "images": sum(a.kind.images for a in in_window) / (end - start),
        "good": sum(is_good(a, workload.device) for a in done) / (end - start),
        "refused": sum(a.outcome == REFUSED for a in counted) / max(1, len(counted)),
        "p50_ms": p50,
        "p95_ms": p95,
    }
    if isinstance(workload, Open):
        found["in_time"] = shares(counted, workload.device)
        if len(workload.phases) > 1:
            found["recovery_seconds"] = recovery(workload, answers)
    if rows:
        needed = sum(a.kind.steps * a.kind.rows for a in answers if a.outcome == OK)
        found["unanswered_rows"] = 1 - needed / rows  # share that was run for clients that left
    if cost:
        found |= {
            "cpu_ms": 1000 * cost.server / max(1, len(in_window)),
            "server_cores": cost.server / cost.seconds,
            "engine_cores": cost.engine / cost.seconds,
            "client_cores": cost.client / cost.seconds,
            "elsewhere_cores": cost.elsewhere / cost.seconds,
        }
    return {name: round(float(value), 4) if isinstance(value, float) else value for name, value in found.items()}


def is_disturbed(found: dict[str, Any]) -> bool:
    """Whether other programs or the hypervisor took so much of the cores that the figures are not reliable."""
    return found.get("elsewhere_cores", 0.0) > BUSY


def is_good(answer: Answer, device: Device) -> bool:
    return answer.outcome == OK and answer.latency <= TARGET_FACTOR * answer.kind.idle_seconds(device)


def shares(answers: list[Answer], device: Device) -> dict[str, float]:
    """Share of requests answered in time, by model and by number of steps, without those of leaving clients."""
    classes: dict[str, list[bool]] = {}
    for answer in (a for a in answers if not a.was_leaving):
        for name in (answer.kind.model, str(answer.kind.steps)):
            classes.setdefault(name, []).append(is_good(answer, device))
    return {name: round(float(np.mean(classes[name])), 4) for name in sorted(classes)}


def recovery(workload: Open, answers: list[Answer]) -> float | None:
    """Seconds from the end of the burst to the end of the first second whose p90 slowdown is as before it.

    As before means at most 3, or at most 1.5 times the p90 of the second half of the first phase. None if there is
    no such second, or if no request was answered in that half.
    """
    before, burst, after = (seconds for _, seconds in workload.phases)

    def p90(start: float, end: float) -> float:
        slow = [
            a.latency / a.kind.idle_seconds(workload.device)
            for a in answers
            if start <= a.due < end and a.outcome == OK
        ]
        return float(np.quantile(slow, 0.9)) if slow else float("inf")

    usual = p90(before / 2, before)
    if usual == float("inf"):
        return None
    limit = max(3.0, 1.5 * usual)
    bin_seconds = min(1.0, after)
    for number in range(int(after / bin_seconds)):
        start = before + burst + number * bin_seconds
        if p90(start, start + bin_seconds) <= limit:
            return (number + 1) * bin_seconds
    return None
