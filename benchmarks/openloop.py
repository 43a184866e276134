"""An open loop: a real server below and above its capacity, with requests that do not wait for each other.

    python -m benchmarks.openloop [--seconds 20] [--loads 0.5 1 1.5 3] [--plot docs/openloop.png]

Requests arrive at random (Poisson), whether or not the earlier ones were answered. Load 1 is what the device can do
with full steps. A latency counts from the time at which the request was due, so a slow server cannot slow its own
measurement down. An answer is in time if it takes at most three times as long as the same request alone. The real
server runs in its own process, with a simulated device, both models, and DIFFUSION_SHED_LOAD on. After each load,
some seconds of low load show how soon new requests are in time again. Run it on a machine without other load.
"""

import argparse
import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np

from benchmarks import scheduling
from benchmarks.client import Server, serving
from benchmarks.scheduling import GUIDANCE, STEPS
from benchmarks.soak import CONFIG
from service.engine.policy import TARGET_FACTOR
from service.engine.simulated_device import StepCost

# The device of benchmarks.scheduling, ten times slower: the clients share this machine's cores with the server.
COSTS = {model: StepCost(10 * cost.t0_ms, 10 * cost.t1_ms) for model, cost in scheduling.COSTS.items()}
ROWS = 32
CALM_LOAD, CALM_SECONDS = 0.3, 6.0  # after each load
REPEATS = 3  # of each kind of request on an idle server


@dataclass(frozen=True)
class Kind:
    """All parameters of a request that change its duration."""

    model: str
    steps: int
    guidance: float


KINDS = [Kind(model, steps, scale) for model in COSTS for steps in STEPS for scale in GUIDANCE]


@dataclass(frozen=True)
class Answer:
    kind: Kind
    due: float  # seconds since the load began
    latency: float  # seconds since due
    status: int  # 0: the connection broke


@dataclass(frozen=True)
class Load:
    """The answers to the requests of one load, and of the low load after it."""

    factor: float  # of the capacity
    seconds: float
    answers: list[Answer]
    alone: dict[Kind, float]  # latency on an idle server
    resident_mib: float
    retry_after: list[int]

    def in_time(self, answer: Answer) -> bool:
        return answer.status == 200 and answer.latency <= TARGET_FACTOR * self.alone[answer.kind]

    @property
    def loaded(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.due < self.seconds]

    @property
    def goodput(self) -> float:
        """Answers in time per second, for the requests that were due while the load lasted."""
        return sum(map(self.in_time, self.loaded)) / self.seconds

    def share(self, status: int) -> float:
        return sum(answer.status == status for answer in self.loaded) / len(self.loaded)

    @property
    def slowdowns(self) -> np.ndarray:
        done = [answer for answer in self.loaded if answer.status == 200]
        return np.array([answer.latency / self.alone[answer.kind] for answer in done])

    @property
    def recovery_seconds(self) -> float:
        """Seconds from the end of the load until new requests are in time again.

        That is the first arrival from which on nine of ten requests are in time.
        """
        calm = sorted((answer for answer in self.answers if answer.due >= self.seconds), key=lambda a: a.due)
        good = [self.in_time(answer) for answer in calm]
        for start, answer in enumerate(calm):
            if np.mean(good[start:]) >= 0.9:
                return answer.due - self.seconds
        return float("inf")


def capacity() -> float:
    """Requests per second that the device can serve with full steps, half of them for each model."""
    evaluations = float(np.mean([kind.steps * (1 + (kind.guidance != 1)) for kind in KINDS]))
    return 1 / (evaluations * float(np.mean([cost.seconds(ROWS) / ROWS for cost in COSTS.values()])))


async def ask(server: Server, kind: Kind, retry_after: list[int]) -> int:
    """Send a request; returns the status of the answer, or 0 if the connection broke."""
    query = {"model": kind.model, "class": 0, "steps": kind.steps, "guidance": kind.guidance, "sampler": "ddim"}
    try:
        async with server.session.post("/generate", params=query) as answer:
            await answer.read()
            if answer.status == 503:
                retry_after.append(int(answer.headers["Retry-After"]))
            return answer.status
    except aiohttp.ClientError:
        return 0


async def measure_alone(server: Server) -> dict[Kind, float]:
    alone = {}
    for kind in KINDS:
        seconds = []
        for _ in range(REPEATS):
            started = time.monotonic()
            await ask(server, kind, [])
            seconds.append(time.monotonic() - started)
        alone[kind] = float(np.median(seconds))
    return alone


async def offer(server: Server, factor: float, seconds: float, alone: dict[Kind, float], seed: int) -> Load:
    """Offer a load, then the low load; returns when every request has its answer."""
    rng = np.random.default_rng(seed)
    trace, now = [], 0.0
    while now < seconds + CALM_SECONDS:
        rate = capacity() * (factor if now < seconds else CALM_LOAD)
        now += rng.exponential(1 / rate)
        trace.append((now, KINDS[rng.integers(len(KINDS))]))
    answers, retry_after, started = list[Answer](), list[int](), time.monotonic()

    async def one(due: float, kind: Kind) -> None:
        await asyncio.sleep(started + due - time.monotonic())
        status = await ask(server, kind, retry_after)
        answers.append(Answer(kind, due, time.monotonic() - started - due, status))

    await asyncio.gather(*(one(due, kind) for due, kind in trace))
    return Load(factor, seconds, answers, alone, server.resident_mib(), retry_after)


async def measure(factors: list[float], seconds: float, seed: int = 0) -> list[Load]:
    models = {
        name: {"config": CONFIG, "simulate": {"t0_ms": cost.t0_ms, "t1_ms": cost.t1_ms}}
        for name, cost in COSTS.items()
    }
    settings = {"models": json.dumps(models), "device": "cpu", "max_rows": ROWS, "log_level": "error"}
    async with serving(**settings, shed_load=True) as server:
        alone = await measure_alone(server)
        return [await offer(server, factor, seconds, alone, seed) for factor in factors]


def table(loads: list[Load]) -> str:
    best = max(load.goodput for load in loads)
    lines = [
        "| load | requests | in time a second | of the best | refused | p50 / p99 slowdown | Retry-After "
        "| recovery | resident |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for load in loads:
        p50, p99 = np.quantile(load.slowdowns, [0.5, 0.99])
        waits = f"{min(load.retry_after)} to {max(load.retry_after)} s" if load.retry_after else "none"
        lines.append(
            f"| {load.factor:.0%} | {len(load.loaded)} | {load.goodput:.1f} | {load.goodput / best:.0%} "
            f"| {load.share(503):.0%} | {p50:.1f} / {p99:.1f} | {waits} | {load.recovery_seconds:.1f} s "
            f"| {load.resident_mib:.0f} MiB |"
        )
    return "\n".join(lines)


def plot(loads: list[Load], path: Path) -> None:
    """Plot each request: its arrival, and its latency over the latency on an idle server."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6 * len(loads)), layout="constrained")
    for axes, load in zip(figure.subplots(len(loads), squeeze=False)[:, 0], loads, strict=True):
        done = [answer for answer in load.answers if answer.status == 200]
        points = [(answer.due, answer.latency / load.alone[answer.kind]) for answer in done]
        refused = [answer.due for answer in load.answers if answer.status != 200]
        axes.axvspan(0, load.seconds, color="0.94", lw=0)
        axes.plot(*zip(*points, strict=True), ".", ms=4, label="answered")
        axes.plot(refused, [0.6] * len(refused), "|", color="C3", ms=7, label="refused, with Retry-After")
        axes.axhline(TARGET_FACTOR, color="0.3", lw=1, ls="--")
        axes.set(yscale="log", ylim=(0.5, 20), yticks=[1, 3, 10], yticklabels=["1x", "3x", "10x"])
        axes.set_title(
            f"load {load.factor:.0%}: {load.goodput:.1f} answers a second in time", loc="left", fontsize=10
        )
        axes.set_ylabel("latency / alone")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, loc="upper right", ncols=2)
    figure.axes[-1].set_xlabel("seconds; the load lasts as long as it is grey")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.7, 1.0, 1.5, 3.0])
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    loads = asyncio.run(measure(arguments.loads, arguments.seconds))
    print(f"capacity: {capacity():.1f} requests a second")
    print(table(loads))
    if arguments.plot:
        plot(loads, arguments.plot)


if __name__ == "__main__":
    main()
