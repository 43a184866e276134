"""Simulates fleets: how many replicas a rate of requests needs, what they cost, and their latencies.

    python -m benchmarks.scaling [--rates 10 1000 100000] [--price 1.0] [--plot docs/scaling.png]
    python -m benchmarks.scaling --info http://127.0.0.1:8000/info   # the step times of a running service

benchmarks/fleet.py describes the simulation. Load 1 is what the devices can do with full steps. A request is in
time if it takes at most three times as long as alone on an idle device; a refused one is not. docs/scaling.md
explains the tables. On a busy two-core machine they take about ten minutes, half of it for the largest rate.
"""

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from benchmarks.fleet import FLEETS, SIMULATED, Fleet, Model, Models, Outcome, capacity, simulate
from service.engine.simulated import StepCost

COUNTS = (1, 4, 16)  # replicas of the fleets in the first table
LOADS = tuple(round(0.4 + 0.05 * i, 2) for i in range(13))  # 0.4 to 1
PLANNED = ("together, two choices", "a model's own, two choices")
SPARE = 0.05  # share of the replicas for failures and updates; at least one, or one a model if they have their own
HOUR = 3600  # seconds
ANSWER_BYTES = 1500  # a PNG of the shipped models (1,210 on average) and its headers (290)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = dict[float, Outcome]  # by load
Curves = dict[tuple[str, int], Curve]  # by fleet and replicas


def measured(profiles: dict[str, dict[str, Any]]) -> Models:
    """The models of a service: a straight line through the step times; profiles: of an answer to GET /info."""
    models = {}
    for name, profile in profiles.items():
        points = [(int(rows), 1000 * seconds) for rows, seconds in profile["step_seconds"].items()]
        rows, ms = np.array([point for point in points if point[0] <= profile["max_rows"]]).T
        slope, start = np.polyfit(rows, ms, 1) if len(rows) > 1 else (0.0, ms[0])
        models[name] = Model(StepCost(max(float(start), 0.0), max(float(slope), 0.0)), profile["max_rows"])
    return models


def curve(models: Models, count: int, fleet: Fleet, requests: int, loads: Iterable[float]) -> Curve:
    """Outcomes at increasing loads, up to the first with less than 80 % of the requests in time."""
    outcomes: Curve = {}
    for load in loads:
        outcomes[load] = simulate(models, count, load * count * capacity(models), requests, fleet)
        if outcomes[load].share_in_time < 0.8:
            break
    return outcomes


def highest_load(outcomes: Curve, target: float) -> float:
    """The load up to which the target's share of the requests is in time, interpolated between simulated loads."""
    best, share = 0.0, 1.0
    for load, outcome in outcomes.items():
        if outcome.share_in_time < target:
            return best + (load - best) * (share - target) / (share - outcome.share_in_time)
        best, share = load, outcome.share_in_time
    return best


def measure(models: Models, requests: int) -> Curves:
    """Every fleet at increasing loads. A single replica is simulated once, because routing makes no difference."""
    return {
        (name, count): curve(models, count, fleet, requests, LOADS)
        for count in COUNTS
        for name, fleet in FLEETS.items()
        if count > 1 or name == PLANNED[0]
        if count >= len(models) or not fleet.apart
    }


@dataclass(frozen=True)
class Plan:
    """A fleet that meets the target at a rate of requests, and the outcome of its simulation."""

    rate: float  # requests a second
    fleet: str
    replicas: int
    spare: int
    outcome: Outcome

    @property
    def open_requests(self) -> float:
        """Mean number of open requests on a replica (Little's law), which fail if it crashes."""
        return self.rate / self.replicas * float(np.mean(self.outcome.latencies))


def plan(models: Models, rate: float, name: str, load: float, target: float, requests: int) -> Plan:
    """The smallest fleet found: begin with the replicas for `load`, and add more until the target is met."""
    count = least_replicas(models, rate, name, load)
    while (outcome := simulate(models, count, rate, requests, FLEETS[name])).share_in_time < target:
        count += max(1, count // 50)
    return Plan(rate, name, count, spare(models, count, name), outcome)


def least_replicas(models: Models, rate: float, name: str, load: float) -> int:
    return max(len(models) if FLEETS[name].apart else 1, math.ceil(rate / (capacity(models) * load)))


def spare(models: Models, count: int, name: str) -> int:
    return max(len(models) if FLEETS[name].apart else 1, math.ceil(SPARE * count))


def _device_hours(rate: float, count: int) -> float:
    """Device-hours for a million requests."""
    return 1e6 * count / rate / HOUR


def load_table(curves: Curves, target: float) -> str:
    """The highest load of each fleet, with the latencies and the mean backlog of the nearest simulated load."""
    lines = [
        f"| replicas | models, routing | highest load, {target:.0%} in time | p50 / p99 there | backlog there |",
        "|---|---|---|---|---|",
    ]
    for (name, count), outcomes in curves.items():
        load = highest_load(outcomes, target)
        nearest = outcomes[min(outcomes, key=lambda other: abs(other - load))]
        lines.append(f"| {count} | {name} | **{load:.2f}** | {_ms(nearest)} | {1000 * nearest.backlog:.0f} ms |")
    return "\n".join(lines)


def plan_table(plans: list[Plan], models: Models, price: float, answer_bytes: float) -> str:
    lines = [
        "| requests/s | models, routing | replicas + spare | load | in time | p50 / p99 | open on a replica "
        "| price an hour | per million requests | answers, MB/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for p in plans:
        devices = p.replicas + p.spare
        lines.append(
            f"| {p.rate:,.0f} | {p.fleet} | **{p.replicas} + {p.spare}** "
            f"| {p.rate / p.replicas / capacity(models):.2f} | {p.outcome.share_in_time:.1%} | {_ms(p.outcome)} "
            f"| {p.open_requests:.0f} | {devices * price:,.2f} | {_device_hours(p.rate, devices) * price:,.2f} "
            f"| {p.rate * answer_bytes / 1e6:,.2f} |"
        )
    return "\n".join(lines)


def _ms(outcome: Outcome) -> str:
    p50, p99 = 1000 * np.quantile(outcome.latencies, [0.5, 0.99])
    return f"{p50:.0f} / {p99:.0f} ms"


def plot(curves: Curves, plans: list[Plan], models: Models, target: float, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = dict(zip(FLEETS, ("tab:gray", "tab:blue", "tab:green", "tab:red"), strict=True))
    largest = max(count for _, count in curves)
    for (name, count), outcomes in curves.items():
        if count == largest:
            late = [100 * (1 - outcome.share_in_time) for outcome in outcomes.values()]
            left.plot(list(outcomes), late, marker="o", markersize=3, color=colours[name], label=name)
            if name in PLANNED:
                _plot_price(right, models, name, highest_load(outcomes, target), colours[name])
    for p in plans:
        right.plot(p.rate, _device_hours(p.rate, p.replicas + p.spare), "o", color=colours[p.fleet])
    left.axhline(100 * (1 - target), color="black", linewidth=0.8, linestyle="--")
    left.set(xlabel="load (1 = full steps all the time)", ylabel="late or refused, %", ylim=(0, 10))
    left.set_title(f"{largest} replicas; the dashed line is the target", fontsize=10)
    right.set(xlabel="requests/s", ylabel="device-hours a million requests", xscale="log", yscale="log")
    right.set_title("spare ones included; dots: fleets simulated at their rate", fontsize=10)
    right.yaxis.set_major_formatter("{x:g}")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _plot_price(axes: "Axes", models: Models, name: str, load: float, colour: str) -> None:
    rates = np.geomspace(10, 1e6, 600)
    counts = [least_replicas(models, rate, name, load) for rate in rates]
    hours = [_device_hours(rate, n + spare(models, n, name)) for rate, n in zip(rates, counts, strict=True)]
    axes.plot(rates, hours, color=colour, label=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[10, 1_000, 100_000], help="requests a second")
    parser.add_argument("--target", type=float, default=0.99, help="share of the requests that must be in time")
    parser.add_argument("--price", type=float, default=1.0, help="of a device for an hour, in any currency")
    parser.add_argument("--bytes", type=float, default=ANSWER_BYTES, help="of an answer, with its headers")
    parser.add_argument("--requests", type=int, default=8000, help="to simulate for each load or plan")
    parser.add_argument("--info", help="a service's GET /info, or a file with its answer: step times")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if not 0 < arguments.target < 1 or min(arguments.rates) <= 0:
        parser.error("--target must lie between 0 and 1, and --rates must be greater than 0")
    models = SIMULATED
    if arguments.info:
        file = Path(arguments.info)
        text = file.read_text() if file.exists() else httpx.get(arguments.info).raise_for_status().text
        models = measured(json.loads(text)["profiles"])
    for name, model in models.items():
        cost = model.cost
        print(f"{name}: a step of R rows, {model.rows} at most, takes {cost.t0_ms:.3g} + {cost.t1_ms:.3g} R ms")
    print(f"one device, full steps: {capacity(models):.0f} requests/s\n")
    curves = measure(models, arguments.requests)
    print(load_table(curves, arguments.target), "\n", sep="")
    loads = {name: highest_load(curves[name, max(COUNTS)], arguments.target) for name in PLANNED}
    plans = [
        plan(models, rate, name, loads[name], arguments.target, arguments.requests)
        for rate in arguments.rates
        for name in PLANNED
    ]
    print(plan_table(plans, models, arguments.price, arguments.bytes))
    if arguments.plot:
        plot(curves, plans, models, arguments.target, arguments.plot)


if __name__ == "__main__":
    main()
