"""From one device to a fleet: replicas, cost and tail latency for a rate of requests, by simulation.

    python -m benchmarks.scaling [--rates 10 1000 100000] [--price 1.0] [--plot docs/scaling.png]
    python -m benchmarks.scaling --info http://127.0.0.1:8000/info   # the step times of a running service

Only the devices are simulated (a step of R rows lasts t0 + t1 R, each replica has a clock that jumps) and the arrivals
(those of benchmarks/scheduling.py: Poisson, mixed steps and guidance, every model alike); queues, scheduler, policy
and admission are the service's. Load 1 is what the devices can do with full steps. A request is answered in time if it
takes at most three times what it takes alone; one that is refused is not. A router knows every backlog without delay.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from benchmarks.scheduling import CONFIG, COSTS, GUIDANCE, STEPS, Clock, VirtualRunner, arrivals
from service.engine.core import EngineConfig, EngineCore
from service.engine.policy import TARGET_FACTOR
from service.engine.request import EngineError, Request
from service.engine.simulated import StepCost

ROWS = 32  # of a step at most, where no service tells
WARM_SECONDS = 0.5  # of virtual time that no number counts: the fleet starts empty
SPARE = 0.05  # of the replicas, and at least one: they may fail, or be away for an update
SECONDS_A_HOUR = 3600


@dataclass(frozen=True)
class Model:
    """A model on the device: the time of its steps and their forward rows at most."""

    cost: StepCost
    rows: int


Models = dict[str, Model]
SIMULATED: Models = {name: Model(cost, ROWS) for name, cost in COSTS.items()}


def measured(profiles: dict[str, dict]) -> Models:
    """A straight line through the step times of each model, as GET /info has them."""
    models = {}
    for name, profile in profiles.items():
        points = [(int(rows), 1000 * seconds) for rows, seconds in profile["step_seconds"].items()]
        rows, ms = np.array([point for point in points if point[0] <= profile["max_rows"]]).T
        slope, start = np.polyfit(rows, ms, 1) if len(rows) > 1 else (0.0, ms[0])
        models[name] = Model(StepCost(max(float(start), 0.0), max(float(slope), 0.0)), profile["max_rows"])
    return models


def capacity(models: Models) -> float:
    """Requests a second that one device can do with full steps, each model asked for alike."""
    needed = float(np.mean(STEPS)) * float(np.mean([1 + (scale != 1) for scale in GUIDANCE]))
    return 1 / (needed * float(np.mean([m.cost.seconds(m.rows) / m.rows for m in models.values()])))


class CappedRunner(VirtualRunner):
    """Takes its row cap from the number of its slots, so that every model may have its own."""

    def warm_up(self, max_rows: int | None, on_progress: Callable[[], None] = lambda: None) -> int:
        return super().warm_up(len(self.pool), on_progress)


class Replica:
    """An engine and its device, on a clock of their own."""

    def __init__(self, models: Models):
        self._clock = Clock()
        clock = self._clock
        runners = {n: CappedRunner(CONFIG, m.cost, m.rows, clock, clock.advance) for n, m in models.items()}
        self._core = EngineCore(dict(runners), EngineConfig(shed_load=True), clock=clock)
        for name in runners:
            self._core.warm_up(name)
        clock.now = 0.0
        self.busy = 0.0  # seconds
        self.refused: list[float] = []  # when they arrived
        self.done: list[tuple[float, float, float]] = []  # arrival, latency, latency over idle latency

    @property
    def backlog(self) -> float:
        """Device seconds that its requests still need."""
        return sum(share.scheduler.backlog_seconds for share in self._core.shares.values())

    def run(self, until: float) -> None:
        """Work until that time; the last step may end a little later."""
        while self._core.has_work and self._clock.now < until:
            progress = self._core.step()
            self.busy += progress.stats.seconds if progress.stats else 0.0
            for request in progress.ended:
                latency = request.finished - request.arrived
                self.done.append((request.arrived, latency, latency / request.idle_seconds))
        if not self._core.has_work and math.isfinite(until):
            self._clock.advance(until)

    def take(self, arrived: float, request: Request) -> None:
        try:
            self._core.add(request)
            request.arrived = arrived  # it may have waited for the end of a step
        except EngineError:
            self.refused.append(arrived)


Routing = Callable[[list[Replica], float, np.random.Generator], Replica]


def at_random(replicas: list[Replica], now: float, rng: np.random.Generator) -> Replica:
    return replicas[rng.integers(len(replicas))]


def two_choices(replicas: list[Replica], now: float, rng: np.random.Generator) -> Replica:
    """The less busy one of two at random (Mitzenmacher 2001); what Ray Serve and many proxies do."""
    return least_backlog([at_random(replicas, now, rng) for _ in range(2)], now, rng)


def least_backlog(replicas: list[Replica], now: float, rng: np.random.Generator) -> Replica:
    for replica in replicas:
        replica.run(now)
    return min(replicas, key=lambda replica: replica.backlog)


ROUTINGS: dict[str, Routing] = {"random": at_random, "two choices": two_choices, "least backlog": least_backlog}


@dataclass
class Outcome:
    """Of the requests behind the first WARM_SECONDS."""

    refused: int
    latencies: np.ndarray  # seconds, of the answered ones
    slowdowns: np.ndarray  # the same over idle latency
    busy: float  # share of the devices' time
    backlog: float  # mean seconds a replica

    @property
    def in_time(self) -> float:
        """Share of all requests, the refused ones included."""
        return float((self.slowdowns <= TARGET_FACTOR).sum()) / max(1, len(self.slowdowns) + self.refused)


def simulate(models: Models, count: int, rate: float, requests: int, route: Routing, seed: int = 0) -> Outcome:
    """So many replicas under a rate of requests a second, all of which serve all models."""
    rng, replicas, backlogs = np.random.default_rng(seed), [Replica(models) for _ in range(count)], []
    seconds = WARM_SECONDS + requests / rate
    for now, request in arrivals(rate, seconds, dict.fromkeys(models, 1 / len(models)), seed):
        replica = route(replicas, now, rng)
        replica.run(now)
        backlogs.append(replica.backlog)
        replica.take(now, request)
    for replica in replicas:
        replica.run(seconds)
    busy = sum(replica.busy for replica in replicas) / (count * seconds)
    for replica in replicas:
        replica.run(math.inf)
    done = np.array([row for replica in replicas for row in replica.done if row[0] > WARM_SECONDS]).reshape(-1, 3)
    refused = sum(arrived > WARM_SECONDS for replica in replicas for arrived in replica.refused)
    return Outcome(refused, done[:, 1], done[:, 2], busy, float(np.mean(backlogs)))
