"""Changes each constant of policy and admission alone, and prints how many requests are then answered in time.

    python -m benchmarks.constants [--seconds 10]

The device, the virtual clock, the requests and the meaning of "in time" are those of benchmarks/scheduling.py. In
the last two columns one model gets three times the requests that the whole device can do, and the other one a tenth
of what it can do. The share is that of the other model's requests.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.scheduling import arrivals, capacity, simulate
from service.engine import admission, order, policy, request

LOADS = (0.7, 1.5)
EQUAL = {"dit": 0.5, "unet": 0.5}
CHANGES = (  # module, constant, a smaller and a larger value
    (policy, "MAX_LAG", 0.005, 0.08),
    (policy, "AT_RISK", 0.0, 0.4),
    (admission, "LEAST_FULL", 0.9, 1.25),
    (admission, "MOST_FULL", 1.25, 2.0),
    (admission, "LATE_LOWERS", 0.002, 0.01),
    (admission, "STANDING_SECONDS", 0.05, 1.0),
    (admission, "LEARNING_RATE", 0.02, 0.5),
    (admission, "CALM_SECONDS", 0.2, 5.0),
    (order, "OVERDUE", 5.0, 20.0),
)


@contextmanager
def changed(module: object, name: str, value: float) -> Iterator[None]:
    """The constant has another value within the block."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def answered(load: float, seconds: float, rows: int) -> tuple[float, float]:
    """Share of all requests, refused ones included, in time; share of answers that were predicted within 20 %."""
    trace = arrivals(load * capacity(rows, EQUAL), seconds, EQUAL, seed=0)
    outcome = simulate(trace, seconds, policy.pick, True, rows)
    return outcome.in_time / outcome.arrived, float(np.mean(abs(outcome.prediction_errors) <= 0.2))


def in_time_beside_a_flood(flooded: str, quiet: str, seconds: float, rows: int) -> float:
    """Share of the quiet model's requests that are answered in time while the other model has too many."""
    flood = arrivals(3 * capacity(rows, {flooded: 1.0}), seconds, {flooded: 1.0}, seed=1)
    quiet_requests = arrivals(0.1 * capacity(rows, {quiet: 1.0}), seconds, {quiet: 1.0}, seed=2)
    for _, quiet_request in quiet_requests:
        quiet_request.request_id += " quiet"  # both traces begin to count at 0
    outcome = simulate(sorted(flood + quiet_requests, key=lambda pair: pair[0]), seconds, policy.pick, True, rows)
    return int((np.array(outcome.slowdowns[quiet]) <= request.TARGET_FACTOR).sum()) / len(quiet_requests)


def measure(seconds: float, rows: int) -> list[float]:
    """The shares in the order of the table's last five columns."""
    (calm, predicted), (busy, _) = (answered(load, seconds, rows) for load in LOADS)
    floods = [in_time_beside_a_flood(*pair, seconds / 2, rows) for pair in (("dit", "unet"), ("unet", "dit"))]
    return [calm, predicted, busy, *floods]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of virtual time, for each load")
    parser.add_argument("--rows", type=int, default=32, help="row cap of both models")
    arguments = parser.parse_args()
    columns = (
        "in time at 70 % load",
        "predicted within 20 %",
        "in time at 150 % load",
        "UNet beside a flood of DiT",
    )
    print(f"| constant, as it is | changed to | {' | '.join(columns)} | DiT beside a flood of UNet |")
    print("|---|---|---|---|---|---|---|")
    results = measure(arguments.seconds, arguments.rows)
    print_row("all as they are", "", results)
    for module, name, *values in CHANGES:
        for value in values:
            with changed(module, name, value):
                results = measure(arguments.seconds, arguments.rows)
            print_row(f"`{name}` {getattr(module, name):g}", f"{value:g}", results)


def print_row(name: str, value: str, shares: list[float]) -> None:
    print(f"| {name} | {value} | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()
