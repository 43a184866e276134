"""What swaps of a model's weights cost the others: the same load with swaps and without, in turns, in one run.

    python -m benchmarks.swaps [--swaps 20] [--every 1.0] [--load 0.7] [--t0-ms 2] [--t1-ms 0.5] [--json swaps.json]

The real server runs in its own processes, with the shipped DiT's checkpoint on a simulated device, where a step of
R rows takes t0 + t1 R. Requests of 10 guided steps arrive at random times, whether or not the service keeps up, and
take that share of what the device can do. Windows with swaps and without alternate, under the same arrivals. A swap
reads, checks and converts the whole checkpoint. Latencies count from the time when a request was due.
"""

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp
import numpy as np

from benchmarks.client import Server, serving
from models.files import SHIPPED

KEY = "the-key-of-this-benchmark"
QUERY = {"model": "dit", "class": "3", "steps": "10", "guidance": "1.5"}
ROWS = 20  # model evaluations of a request
MAX_ROWS = 32
WINDOW_SECONDS = 5.0
WARM_UP_SECONDS = 2.0
TIMEOUT = aiohttp.ClientTimeout(total=60)


@dataclass
class Side:
    """What was measured with swaps, or without."""

    latencies: list[float] = field(default_factory=list)  # seconds, of requests that got their image
    failed: list[str] = field(default_factory=list)
    swap_seconds: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """In milliseconds."""
        return 1000 * float(np.quantile(self.latencies, share))


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds after the start, of a Poisson process."""
    rng, times, now = random.Random(seed), list[float](), 0.0
    while (now := now + rng.expovariate(rate)) < seconds:
        times.append(now)
    return times


async def offer(server: Server, side: Side, due: list[float]) -> None:
    """Send each request when it is due; returns when all have ended."""
    started = time.monotonic()

    async def one(seconds: float) -> None:
        await asyncio.sleep(started + seconds - time.monotonic())
        try:
            async with server.session.post("/generate", params=QUERY, timeout=TIMEOUT) as answer:
                await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            side.failed.append(type(error).__name__)
            return
        if answer.status == 200:
            side.latencies.append(time.monotonic() - started - seconds)
        else:
            side.failed.append(f"status {answer.status}")

    await asyncio.gather(*map(one, due))


async def swap(server: Server, side: Side, names: list[str], every: float, until: asyncio.Task[None]) -> None:
    """One after another, at most one in so many seconds, until the load has ended or no name is left."""
    while names and not until.done():
        started = time.monotonic()
        body, headers = {"checkpoint": names[-1]}, {"X-API-Key": KEY}
        async with server.session.put("/admin/models/dit", json=body, headers=headers, timeout=TIMEOUT) as answer:
            text = await answer.text()
        if answer.status != 200:
            raise RuntimeError(text)
        names.pop()
        side.swap_seconds.append(time.monotonic() - started)
        await asyncio.wait({until}, timeout=max(0.0, started + every - time.monotonic()))


async def measure(server: Server, rate: float, swaps: int, every: float) -> tuple[Side, Side]:
    """Windows with swaps and without, until all swaps are done; the order within a pair changes."""
    with_swaps, without = Side(), Side()
    names = [f"staged/{number % 2}" for number in range(swaps)]
    await offer(server, Side(), arrivals(rate, WARM_UP_SECONDS, -1))
    pair = 0
    while names:
        due = arrivals(rate, WINDOW_SECONDS, pair)
        for is_swapping in (True, False) if pair % 2 else (False, True):
            side = with_swaps if is_swapping else without
            work = asyncio.create_task(offer(server, side, due))
            if is_swapping:
                await swap(server, side, names, every, work)
            await work
        pair += 1
    return with_swaps, without


def stage(root: Path) -> None:
    """Two folders, so that every swap brings another one."""
    for number in range(2):
        shutil.copytree(SHIPPED / "dit", root / f"staged/{number}")


async def run(arguments: argparse.Namespace) -> tuple[Side, Side]:
    seconds = (arguments.t0_ms + arguments.t1_ms * MAX_ROWS) / 1000
    rate = arguments.load * MAX_ROWS / seconds / ROWS
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
    parser.add_argument("--load", type=float, default=0.7)
    parser.add_argument("--t0-ms", type=float, default=2.0)
    parser.add_argument("--t1-ms", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.swaps < 1 or arguments.load <= 0:
        parser.error("--swaps must be at least 1, and --load greater than 0")
    sides = dict(zip(("with swaps", "without"), asyncio.run(run(arguments)), strict=True))
    print(f"{'':<12}{'requests':>10}{'failed':>8}{'p50 ms':>8}{'p99 ms':>8}{'swaps':>7}")
    for name, side in sides.items():
        counts = len(side.latencies) + len(side.failed), len(side.failed)
        print(f"{name:<12}{counts[0]:>10}{counts[1]:>8}", end="")
        print(f"{side.quantile(0.5):>8.1f}{side.quantile(0.99):>8.1f}{len(side.swap_seconds):>7}")
    times = sides["with swaps"].swap_seconds
    ratio = sides["with swaps"].quantile(0.99) / sides["without"].quantile(0.99)
    print(f"p99 is {100 * (ratio - 1):+.0f} %; a swap takes {np.median(times):.2f} s, at most {max(times):.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({name: asdict(side) for name, side in sides.items()}))
    return 1 if any(side.failed for side in sides.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
