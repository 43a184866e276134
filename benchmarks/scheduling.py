"""Compares scheduling policies for two models on one simulated device, in the engine that serves.

    python -m benchmarks.scheduling [--seconds 10] [--rows 32] [--plot docs/scheduling.png]

Device and arrivals are simulated. A step of R rows lasts t0 + t1 R ms on a virtual clock. Arrivals are Poisson,
half of them for each model, with mixed steps and guidance. Queues, scheduler, policy and admission are those of the
service. A request is in time if it takes at most three times as long as alone on an idle device. Load 1 is what the
device can do with full steps. Predictions of latencies are those that the engine makes at admission.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.checkpoint import ModelConfig
from service.engine.core import EngineConfig, EngineCore
from service.engine.plan import compile_plan
from service.engine.policy import DeviceShare, Policy, pick, wake
from service.engine.request import TARGET_FACTOR, Request
from service.engine.simulated import SimulatedRunner
from service.engine.simulated_device import SimulatedDevice, StepCost
from service.engine.slot_table import TaskArrays
from service.errors import ServiceError
from service.wire.messages import SamplingParams

COSTS = {"dit": StepCost(2, 0.02), "unet": StepCost(4, 0.05)}
STEPS, GUIDANCE = (5, 10, 20, 30, 50), (1.0, 2.0)
ROWS_A_REQUEST = float(np.mean(STEPS)) * float(np.mean([1 + (scale != 1) for scale in GUIDANCE]))
# The smallest network that fits, because its images are not used.
CONFIG = ModelConfig("dit", {"image_size": 4, "image_channels": 1, "hidden_dim": 32, "depth": 1, "num_heads": 4})


class Clock:
    """A virtual clock, which moves when the device runs a step and when nothing is left to do."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, until: float) -> None:
        self.now = max(self.now, until)


class VirtualRunner(SimulatedRunner):
    """A simulated runner on a virtual clock: its steps take exactly what they cost, its host nothing."""

    steps_ahead = 0  # the host takes no time, so no step has to be launched before the last one ends

    def __init__(
        self, config: ModelConfig, cost: StepCost, rows: int, clock: Clock, sleep_until: Callable[[float], None]
    ):
        super().__init__(config, cost, rows, SimulatedDevice(clock, sleep_until))

    def send(self, step: TaskArrays, rows: int) -> None:
        pass

    def _time_step(self, rows: int) -> float:
        return self.cost.seconds(rows)


@dataclass
class Outcome:
    """Results for the requests that arrived while the load lasted."""

    arrived: int
    refused: int
    slowdowns: dict[str, list[float]]  # latency over idle latency of answered requests, by model
    predictions: list[tuple[float, float]]  # seconds: latency predicted at admission, and measured
    seconds: float

    @property
    def all(self) -> np.ndarray:
        """The slowdowns of all answered requests."""
        return np.array([value for values in self.slowdowns.values() for value in values])

    @property
    def in_time(self) -> int:
        """Number of requests that were answered in time."""
        return int((self.all <= TARGET_FACTOR).sum())

    @property
    def goodput(self) -> float:
        """Requests per second that were answered in time."""
        return self.in_time / self.seconds

    @property
    def prediction_errors(self) -> np.ndarray:
        """Predicted over measured latency, less 1, of answered requests."""
        predicted, measured = np.array(self.predictions).T
        return predicted / measured - 1


def capacity(rows: int, shares: dict[str, float]) -> float:
    """Requests per second that the device can serve with full steps; shares are of the requests, by model."""
    return 1 / (ROWS_A_REQUEST * sum(share * COSTS[name].seconds(rows) / rows for name, share in shares.items()))


def arrivals(rate: float, seconds: float, shares: dict[str, float], seed: int) -> list[tuple[float, Request]]:
    """Poisson arrival times, each with a random model, steps and guidance."""
    rng = np.random.default_rng(seed)
    trace, now = [], 0.0
    while (now := now + rng.exponential(1 / rate)) < seconds:
        model = str(rng.choice(list(shares), p=list(shares.values())))
        steps, scale = int(rng.choice(STEPS)), float(rng.choice(GUIDANCE))
        params = SamplingParams(model, 0, steps, "ddim", scale, (0.0, 1.0), (len(trace),))
        trace.append((now, Request(str(len(trace)), params, compile_plan(CONFIG, params))))
    return trace


def simulate(
    trace: list[tuple[float, Request]], seconds: float, policy: Policy, shed_load: bool, rows: int
) -> Outcome:
    """Run a trace until all requests are answered, or until twice its length has passed."""
    clock = Clock()
    runners = {model: VirtualRunner(CONFIG, cost, rows, clock, clock.advance) for model, cost in COSTS.items()}
    config = EngineConfig(rows, 10**9, 10**12, shed_load)
    core = EngineCore(dict(runners), config, clock=clock, policy=policy)
    for model in runners:
        core.warm_up(model)
    outcome = Outcome(len(trace), 0, {model: [] for model in runners}, [], seconds)
    pending, predicted = list(reversed(trace)), dict[str, float]()
    while (pending or core.has_work) and clock.now < 2 * seconds:
        while pending and pending[-1][0] <= clock.now:
            arrived, request = pending.pop()
            try:
                core.add(request)
            except ServiceError:
                outcome.refused += 1
                continue
            if request.expected_seconds:  # 0 where the engine makes no prediction
                predicted[request.request_id] = request.expected_seconds + clock.now - arrived
            request.arrived = arrived  # it may have waited for the end of a step
        if core.has_work:
            for request in core.step().ended:
                slowdown = (request.finished - request.arrived) / request.idle_seconds
                outcome.slowdowns[request.params.model].append(slowdown)
                if request.request_id in predicted:
                    outcome.predictions.append((predicted[request.request_id], request.finished - request.arrived))
        elif pending:
            clock.advance(pending[-1][0])
    return outcome


def alternate() -> Policy:
    """A policy: the models take turns, one step each."""
    last = ""

    def policy(shares: dict[str, DeviceShare], now: float) -> str | None:
        nonlocal last
        busy = list(wake(shares))
        last = next((model for model in busy if model != last), busy[0] if busy else "")
        return last or None

    return policy


def equal_time(shares: dict[str, DeviceShare], now: float) -> str | None:
    """A policy: the model that has used the device least runs next."""
    busy = wake(shares)
    return min(busy, key=lambda model: busy[model].virtual_time, default=None)


POLICIES: dict[str, tuple[Callable[[], Policy], bool]] = {
    "alternate": (alternate, False),
    "equal device time": (lambda: equal_time, False),
    "least relative slack": (lambda: pick, False),
    "least relative slack, refusing": (lambda: pick, True),
}


def compare(loads: list[float], seconds: float, rows: int, seed: int = 0) -> dict[tuple[str, float], Outcome]:
    """Run every policy on the same traces."""
    shares = {"dit": 0.5, "unet": 0.5}
    outcomes = {}
    for load in loads:
        for name, (policy, shed_load) in POLICIES.items():
            trace = arrivals(load * capacity(rows, shares), seconds, shares, seed)
            outcomes[name, load] = simulate(trace, seconds, policy(), shed_load, rows)
    return outcomes


def table(outcomes: dict[tuple[str, float], Outcome]) -> str:
    lines = [
        "| load | policy | answered in time | dit | unet | refused | p50 / p99 slowdown | in time a second "
        "| predicted within 20 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, load), outcome in outcomes.items():
        each = [np.mean(np.array(values) <= TARGET_FACTOR) for values in outcome.slowdowns.values()]
        p50, p99 = np.quantile(outcome.all, [0.5, 0.99])
        predicted = np.mean(abs(outcome.prediction_errors) <= 0.2)
        lines.append(
            f"| {load:.0%} | {name} | **{outcome.in_time / outcome.arrived:.0%}** | {each[0]:.0%} | {each[1]:.0%} "
            f"| {outcome.refused / outcome.arrived:.0%} | {p50:.1f} / {p99:.1f} | {outcome.goodput:.0f} "
            f"| {predicted:.0%} |"
        )
    return "\n".join([*lines, "", "The columns dit and unet count answered requests only."])


def plot(outcomes: dict[tuple[str, float], Outcome], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for policy in POLICIES:
        points = [(load, outcome.goodput) for (name, load), outcome in outcomes.items() if name == policy]
        axes.plot(*zip(*points, strict=True), marker="o", label=policy)
    axes.set(xlabel="load (1 = full steps all the time)", ylabel="answered in time, requests/s", ylim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of virtual time, for each load")
    parser.add_argument("--rows", type=int, default=32, help="row cap of both models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.5, 0.7, 1.0, 1.5, 3.0])
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    outcomes = compare(arguments.loads, arguments.seconds, arguments.rows, arguments.seed)
    print(table(outcomes))
    if arguments.plot:
        plot(outcomes, arguments.plot)


if __name__ == "__main__":
    main()
