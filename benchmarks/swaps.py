"""How swaps of a model's weights change the latency of requests: one load with swaps and without, in turns.

    python -m benchmarks.swaps [--swaps 20] [--every 1.0] [--load 0.7] [--t0-ms 2] [--t1-ms 0.5] [--json swaps.json]

The real server runs in its own processes, with the shipped DiT's checkpoint on a simulated device, where a step of
R rows takes t0 + t1 R ms. Requests of 10 guided steps arrive at random times, whether or not the service keeps up.
--load is the work that arrives over what the device can do. Windows with and without swaps alternate, and have the
same arrivals. A swap reads, checks and converts the whole checkpoint.
Latencies count from the time a request was due.
"""

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.client import Server, serving
from benchmarks.serving.client import Client
from benchmarks.serving.load import OK, offer
from benchmarks.serving.servers import write_request
from benchmarks.serving.workloads import Arrival, Kind
from models.files import SHIPPED

KEY = "the-key-of-this-benchmark"
# Of every request; a guidance of up to 3 is an input of the shipped network, and would cost one row and not two.
KIND = Kind("dit", 10, 4.0)
MAX_ROWS = 32
WINDOW_SECONDS = 5.0
WARM_UP_SECONDS = 2.0
TIMEOUT = 60.0  # seconds of a request


@dataclass
class Measurement:
    """What was measured with swaps, or without."""

    latencies: list[float] = field(default_factory=list)  # seconds, of requests that got their image
    failed: list[str] = field(default_factory=list)
    swap_seconds: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """A quantile of the latencies, in milliseconds."""
        return 1000 * float(np.quantile(self.latencies, share))


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds after the start, of a Poisson process."""
    rng, times, now = random.Random(seed), list[float](), 0.0
    while (now := now + rng.expovariate(rate)) < seconds:
        times.append(now)
    return times


async def send(server: Server, measurement: Measurement, due: list[float]) -> None:
    """Send each request when it is due; returns when all have ended."""
    write, arrivals = partial(write_request, "stepwise", server.port), [Arrival(seconds, KIND) for seconds in due]
    with closing(Client("127.0.0.1", server.port)) as client:
        answers = await offer(client, arrivals, write, TIMEOUT)
    measurement.latencies += [answer.latency for answer in answers if answer.outcome == OK]
    measurement.failed += [answer.outcome for answer in answers if answer.outcome != OK]


async def swap(
    server: Server, measurement: Measurement, names: list[str], every: float, until: asyncio.Task[None]
) -> None:
    """Swap to the last name and drop it, at most once in `every` seconds, until the load ends or no name is left.

    Raises:
        RuntimeError: the service refused a swap.
    """
    while names and not until.done():
        started = time.monotonic()
        body, headers = {"checkpoint": names[-1]}, {"X-API-Key": KEY}
        async with server.session.put("/admin/models/dit", json=body, headers=headers) as answer:
            text = await answer.text()
        if answer.status != 200:
            raise RuntimeError(text)
        names.pop()
        measurement.swap_seconds.append(time.monotonic() - started)
        await asyncio.wait({until}, timeout=max(0.0, started + every - time.monotonic()))


async def measure(server: Server, rate: float, swaps: int, every: float) -> tuple[Measurement, Measurement]:
    """Measure pairs of windows, one with swaps and one without, until all swaps are done.

    The order within a pair alternates. Returns what was measured with swaps, then without.
    """
    with_swaps, without = Measurement(), Measurement()
    names = [f"staged/{number % 2}" for number in range(swaps)]
    await send(server, Measurement(), arrivals(rate, WARM_UP_SECONDS, -1))
    pair = 0
    while names:
        due = arrivals(rate, WINDOW_SECONDS, pair)
        for is_swapping in (True, False) if pair % 2 else (False, True):
            measurement = with_swaps if is_swapping else without
            work = asyncio.create_task(send(server, measurement, due))
            if is_swapping:
                await swap(server, measurement, names, every, work)
            await work
        pair += 1
    return with_swaps, without


def stage(root: Path) -> None:
    """Make two folders with the checkpoint, because a swap needs another folder than the last one."""
    for number in range(2):
        shutil.copytree(SHIPPED / "dit", root / f"staged/{number}")


async def run(arguments: argparse.Namespace) -> tuple[Measurement, Measurement]:
    seconds = (arguments.t0_ms + arguments.t1_ms * MAX_ROWS) / 1000
    rate = arguments.load * MAX_ROWS / seconds / (KIND.steps * KIND.rows)
    print(f"{rate:.0f} requests a second, {100 * arguments.load:g} % of the device", flush=True)
    cost = {"t0_ms": arguments.t0_ms, "t1_ms": arguments.t1_ms}
    with tempfile.TemporaryDirectory() as folder:
        stage(Path(folder))
        models = {"dit": {"checkpoint": str(SHIPPED / "dit"), "simulate": cost}}
        settings = {"models": json.dumps(models), "checkpoints": folder, "admin_key": KEY, "max_rows": MAX_ROWS}
        settings |= {"device": "cpu", "log_level": "error", "http_workers": 2, "shed_load": False}
        async with serving(**settings) as server:
            return await measure(server, rate, arguments.swaps, arguments.every)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--every", type=float, default=1.0, help="seconds from one swap to the next")
    parser.add_argument("--load", type=float, default=0.7, help="arriving work over the device's capacity")
    parser.add_argument("--t0-ms", type=float, default=2.0)
    parser.add_argument("--t1-ms", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.swaps < 1 or arguments.load <= 0:
        parser.error("--swaps must be at least 1, and --load greater than 0")
    measurements = dict(zip(("with swaps", "without"), asyncio.run(run(arguments)), strict=True))
    print(f"{'':<12}{'requests':>10}{'failed':>8}{'p50 ms':>8}{'p99 ms':>8}{'swaps':>7}")
    for name, found in measurements.items():
        print(f"{name:<12}{len(found.latencies) + len(found.failed):>10}{len(found.failed):>8}", end="")
        print(f"{found.quantile(0.5):>8.1f}{found.quantile(0.99):>8.1f}{len(found.swap_seconds):>7}")
    times = measurements["with swaps"].swap_seconds
    ratio = measurements["with swaps"].quantile(0.99) / measurements["without"].quantile(0.99)
    print(f"p99 is {100 * (ratio - 1):+.0f} %; a swap takes {np.median(times):.2f} s, at most {max(times):.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({name: asdict(found) for name, found in measurements.items()}))
    return 1 if any(found.failed for found in measurements.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
