"""Simulates replicas of the engine behind a router.

Devices and arrivals are simulated. A step of R rows lasts t0 + t1 R ms on the virtual clock of its replica.
Arrivals are those of benchmarks/scheduling.py: Poisson, mixed steps and guidance, each model equally often. Queues,
scheduler, policy and admission are the service's own. The router knows the backlog of every replica without delay.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.scheduling import CONFIG, COSTS, ROWS_A_REQUEST, Clock, VirtualRunner, arrivals
from service.engine.core import EngineConfig, EngineCore
from service.engine.request import TARGET_FACTOR, Request
from service.engine.simulated import StepCost
from service.errors import ServiceError

ROWS = 32  # maximum of a step, unless --info names a service
WARM_SECONDS, COOL_SECONDS = 1.0, 0.5  # at start and end, whose requests do not count: the fleet is not yet full


@dataclass(frozen=True)
class Model:
    """A model on the device: its step times and its row cap."""

    cost: StepCost
    rows: int


Models = dict[str, Model]
SIMULATED: Models = {name: Model(cost, ROWS) for name, cost in COSTS.items()}


def capacity(models: Models) -> float:
    """Requests per second that one device can serve with full steps, if each model gets equally many."""
    return 1 / (ROWS_A_REQUEST * float(np.mean([m.cost.seconds(m.rows) / m.rows for m in models.values()])))


class CappedRunner(VirtualRunner):
    """A runner whose row cap is its number of slots, so that each model can have its own cap."""

    def warm_up(self, max_rows: int | None, on_progress: Callable[[], None] = lambda: None) -> int:
        return super().warm_up(self.max_rows, on_progress)


class Replica:
    """An engine and its simulated device, with their own clock."""

    def __init__(self, models: Models):
        self._clock = Clock()
        clock = self._clock
        runners = {n: CappedRunner(CONFIG, m.cost, m.rows, clock, clock.advance) for n, m in models.items()}
        self._core = EngineCore(dict(runners), EngineConfig(shed_load=True), clock=clock)
        for name in runners:
            self._core.warm_up(name)
        self._start = clock.now  # after the warm-up; all other times count from here
        self.refused: list[float] = []  # arrival times
        self.ended: list[Request] = []
        self.rows = 0  # evaluations that were run

    @property
    def backlog(self) -> float:
        """Device seconds that the accepted requests still need."""
        return sum(share.scheduler.backlog_seconds for share in self._core.shares.values())

    def run(self, until: float) -> None:
        """Run steps until that time; the last step may end later."""
        while self._core.has_work and self._clock.now < self._start + until:
            self.step()
        if not self._core.has_work and math.isfinite(until):
            self._clock.advance(self._start + until)

    def step(self) -> None:
        """Run one step, and move the times of the requests that it ends to this replica's start."""
        progress = self._core.step()
        self.rows += progress.stats.num_rows if progress.stats else 0
        for request in progress.ended:
            request.arrived, request.finished = request.arrived - self._start, request.finished - self._start
            self.ended.append(request)

    def take(self, arrived: float, request: Request) -> bool:
        """Offer a request that arrived at that time; returns whether it was accepted."""
        try:
            self._core.add(request)
        except ServiceError:
            self.refused.append(arrived)
            return False
        request.arrived = self._start + arrived  # it may have waited for the end of a step
        return True

    def abort(self, request_id: str) -> bool:
        """Abort a request; returns whether it was still open."""
        return self._core.abort(request_id) is not None


Routing = Callable[[list[Replica], float, np.random.Generator], Replica]  # (candidates, now, random numbers)


def at_random(replicas: list[Replica], now: float, rng: np.random.Generator) -> Replica:
    return replicas[rng.integers(len(replicas))]


def least_backlog(replicas: list[Replica], now: float, rng: np.random.Generator) -> Replica:
    for replica in replicas:
        replica.run(now)
    return min(replicas, key=lambda replica: replica.backlog)


def two_choices(replicas: list[Replica], now: float, rng: np.random.Generator) -> Replica:
    """Of two random replicas the one with less backlog (Mitzenmacher 2001); Ray Serve compares open requests."""
    return least_backlog([at_random(replicas, now, rng) for _ in range(2)], now, rng)


@dataclass(frozen=True)
class Fleet:
    """How requests are routed; apart: each model has replicas of its own."""

    route: Routing
    apart: bool = False


FLEETS = {
    "together, random": Fleet(at_random),
    "together, two choices": Fleet(two_choices),
    "together, least backlog": Fleet(least_backlog),
    "a model's own, two choices": Fleet(two_choices, apart=True),
}


def divide(models: Models, count: int) -> dict[str, int]:
    """Number of replicas by model: one each, and each further one for the model with the most work a replica."""
    work = {name: model.cost.seconds(model.rows) / model.rows for name, model in models.items()}
    counts = dict.fromkeys(models, 1)
    for _ in range(count - len(models)):
        counts[max(models, key=lambda name: work[name] / counts[name])] += 1
    return counts


@dataclass
class Outcome:
    """Results for the requests after the first WARM_SECONDS and before the last COOL_SECONDS."""

    refused: int
    latencies: np.ndarray  # seconds, of answered requests
    slowdowns: np.ndarray  # latency over the latency on an idle device
    backlog: float  # seconds, mean of all replicas

    @property
    def share_in_time(self) -> float:
        """Share of all requests, refused ones included, that were answered in time."""
        return float((self.slowdowns <= TARGET_FACTOR).sum()) / max(1, len(self.slowdowns) + self.refused)


def simulate(models: Models, count: int, rate: float, requests: int, fleet: Fleet, seed: int = 0) -> Outcome:
    """Run `count` replicas at `rate` requests per second, long enough to count about `requests` of them."""
    if fleet.apart:
        parts = {
            name: [Replica({name: models[name]}) for _ in range(n)] for name, n in divide(models, count).items()
        }
    else:
        parts = dict.fromkeys(models, [Replica(models) for _ in range(count)])
    replicas = list(dict.fromkeys(replica for part in parts.values() for replica in part))
    rng, backlogs, seconds = np.random.default_rng(seed), [], WARM_SECONDS + requests / rate + COOL_SECONDS
    for now, request in arrivals(rate, seconds, dict.fromkeys(models, 1 / len(models)), seed):
        replica = fleet.route(parts[request.params.model], now, rng)
        replica.run(now)
        if now > WARM_SECONDS:  # Poisson arrivals see time averages, so one replica is read at each arrival
            read = replicas[len(backlogs) % count]
            read.run(now)
            backlogs.append(read.backlog)
        replica.take(now, request)
    for replica in replicas:
        replica.run(math.inf)
    done = [r for replica in replicas for r in replica.ended if _counts(r.arrived, seconds)]
    latencies = np.array([request.finished - request.arrived for request in done])
    slowdowns = latencies / np.array([request.idle_seconds for request in done])
    refused = sum(_counts(arrived, seconds) for replica in replicas for arrived in replica.refused)
    return Outcome(refused, latencies, slowdowns, float(np.mean(backlogs)))


def _counts(arrived: float, seconds: float) -> bool:
    return WARM_SECONDS < arrived < seconds - COOL_SECONDS
