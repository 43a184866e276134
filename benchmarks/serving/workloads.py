"""The workloads, which are requests and their times, and the simulated devices.

Capacity is the rate of mixed requests that the device can do with full steps. Times are in seconds.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from service.engine.simulated_device import StepCost

STEPS = {10: 0.5, 20: 0.25, 50: 0.2, 100: 0.05}  # share of the mixed requests
GUIDANCE = (1.0, 3.0)
TARGET_FACTOR = 3.0  # an answer is good within so many times the request's own idle latency
TIMEOUT = 10.0  # of a client that does not leave before
LEAVES_AFTER = (0.3, 1.5)  # idle latencies of its request, after which a leaving client leaves


@dataclass(frozen=True)
class Device:
    """Step costs by model, and the row cap that the servers are given."""

    costs: dict[str, StepCost]
    rows: int


ACCELERATOR = Device({"dit": StepCost(2, 0.02), "unet": StepCost(4, 0.05)}, 64)
H100 = Device({"dit": StepCost(0.1, 0.001), "unet": StepCost(0.3, 0.003)}, 256)  # by arithmetic, not measured


@dataclass(frozen=True)
class Kind:
    """The fields of a request that change its duration."""

    model: str
    steps: int
    guidance: float = 1.0
    images: int = 1

    @property
    def rows(self) -> int:
        """Of each step; a simulated model has no checkpoint, so its guidance always takes a second row."""
        return self.images * (1 + (self.guidance != 1))

    def idle_seconds(self, device: Device) -> float:
        return self.steps * device.costs[self.model].seconds(self.rows)


@dataclass(frozen=True)
class Arrival:
    due: float  # since the start
    kind: Kind
    leaves: float | None = None  # since the start; None: the client waits


@dataclass(frozen=True)
class Open:
    """Requests that arrive at random, whether or not the earlier ones were answered."""

    name: str
    phases: tuple[tuple[float, float], ...]  # load over capacity, seconds
    leaving: float = 0.0  # share of the clients that leave
    device: Device = ACCELERATOR

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.phases)

    def arrivals(self, seed: int = 0) -> Iterator[Arrival]:
        rng, start = np.random.default_rng(seed), 0.0
        for load, seconds in self.phases:
            for due, kind in mixed(list(self.device.costs), load * capacity(self.device), seconds, rng):
                leaves, factor = rng.random() < self.leaving, rng.uniform(*LEAVES_AFTER)
                until = start + due + factor * kind.idle_seconds(self.device)
                yield Arrival(start + due, kind, until if leaves else None)
            start += seconds


@dataclass(frozen=True)
class Closed:
    """Clients that send the next request when they have their answer."""

    name: str
    clients: int
    kind: Kind
    seconds: float
    device: Device = ACCELERATOR
    form: str = "png"


Workload = Open | Closed


def mixed(models: list[str], rate: float, seconds: float, rng: np.random.Generator) -> Iterator[tuple[float, Kind]]:
    """Poisson arrivals, as times and kinds, of requests that differ in model, steps and guidance."""
    due = 0.0
    while (due := due + rng.exponential(1 / rate)) < seconds:
        steps = int(rng.choice(list(STEPS), p=list(STEPS.values())))
        yield due, Kind(str(rng.choice(models)), steps, float(rng.choice(GUIDANCE)))


def capacity(device: Device) -> float:
    """Mixed requests a second that a device can do with full steps."""
    steps = sum(count * share for count, share in STEPS.items())
    rows = float(np.mean([Kind("", 1, scale).rows for scale in GUIDANCE]))
    row_seconds = float(np.mean([cost.seconds(device.rows) / device.rows for cost in device.costs.values()]))
    return 1 / (steps * rows * row_seconds)


def workloads(scale: float = 1.0) -> dict[str, Workload]:
    """All workloads by name, with their durations multiplied by scale."""
    s = scale
    found: list[Workload] = [
        Closed("W4", 1, Kind("dit", 20), 5 * s),
        Closed("W1", 64, Kind("dit", 20), 8 * s),
        *(Open(f"W2-{round(100 * load)}", ((load, 20 * s),)) for load in (0.25, 0.5, 0.7, 0.9)),
        Open("W5", ((0.5, 8 * s), (1.5, 20 * s), (0.5, 8 * s))),
        Open("W6", ((0.7, 20 * s),), leaving=0.3),
        *(Closed(f"H-{clients}", clients, Kind("dit", 10, 1.5), 3 * s, H100) for clients in (1, 4, 16, 64, 256)),
        Closed("H-npy", 16, Kind("dit", 10, 1.5, images=16), 3 * s, H100, "npy"),
    ]
    return {workload.name: workload for workload in found}
