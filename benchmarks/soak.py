"""Sends many requests to the real server, and checks that none is lost and that nothing grows or stays behind.

    python -m benchmarks.soak [--requests 200000] [--clients 32] [--json soak.json]

The real server runs in its own processes, with a fast simulated device. The clients of 5 % of the requests hang
up, 5 % ask for event streams, and the rest for one image with random steps, sampler and guidance. Every request
must get exactly one answer, and the server's own count must agree. At the end, slots and queues must be empty.
Resident memory, threads and open files of the server are read from /proc.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

from benchmarks.client import Server, serving
from models.samplers import PLAIN

COST = {"t0_ms": 0.02, "t1_ms": 0.001}
ARGUMENTS = {"image_size": 8, "image_channels": 1, "hidden_dim": 32, "depth": 1, "num_heads": 4, "num_classes": 10}
CONFIG = {"arguments": ARGUMENTS, "class_names": list("0123456789")}
MODELS = {name: {"config": CONFIG, "simulate": COST} for name in ("dit", "unet")}
HANG_UPS, STREAMS = 0.05, 0.05  # shares of the requests
HANG_UP_SECONDS = 0.02  # at most, after the request was sent
Query = dict[str, str | int]
PICTURE, COMPLETED = b"\x89PNG", b"event: image_generation.completed"
FINE = ("picture", "stream", "hung up")  # outcomes that are no faults
GROWTH = 0.05  # share by which resident memory may grow after the first quarter of the requests
SPARE_FILES = 8  # open files that may be added, for connections that were just hung up


@dataclass(frozen=True)
class Sample:
    """The server's processes while they work."""

    done: int
    seconds: float
    resident_mib: float
    threads: int
    open_files: int


@dataclass(frozen=True)
class Report:
    """The result of a run."""

    answers: dict[str, int]  # number of requests by outcome
    counted: dict[str, int]  # by the server, by outcome
    left: dict[str, float]  # gauges after the last answer
    samples: list[Sample]

    @property
    def faults(self) -> list[str]:
        """A sentence for each fault; none if the server is healthy."""
        found = [f"{count} requests: {kind}" for kind, count in self.answers.items() if kind not in FINE]
        found += [f"{name} is {value:g}" for name, value in self.left.items() if value]
        answered = self.answers.get("picture", 0) + self.answers.get("stream", 0)
        # A client that hung up may have been answered just before.
        if not answered <= self.counted["ok"] <= answered + self.answers.get("hung up", 0):
            found.append(f"the server counted {self.counted['ok']} answers, the clients {answered}")
        if sum(self.counted.values()) > sum(self.answers.values()):
            found.append("the server counted more requests than were sent")
        return found + self.growth

    @property
    def growth(self) -> list[str]:
        """What grew after the first quarter of the samples, when all buffers and connections are in use."""
        early, last = self.samples[len(self.samples) // 4], self.samples[-1]
        found = []
        if last.resident_mib > (1 + GROWTH) * early.resident_mib:
            found.append(f"resident memory grew from {early.resident_mib:.0f} to {last.resident_mib:.0f} MiB")
        if last.threads > early.threads:
            found.append(f"threads grew from {early.threads} to {last.threads}")
        if last.open_files > early.open_files + SPARE_FILES:
            found.append(f"open files grew from {early.open_files} to {last.open_files}")
        return found


class Soak:
    """Clients that work through a number of requests together."""

    def __init__(self, server: Server, requests: int, seed: int = 0):
        self.server, self.left, self.random = server, requests, random.Random(seed)
        self.answers: Counter[str] = Counter()

    async def client(self) -> None:
        while self.left > 0:
            self.left -= 1
            try:
                self.answers[await self._one()] += 1
            except (aiohttp.ClientError, TimeoutError) as error:
                self.answers[f"broken: {type(error).__name__}"] += 1

    async def _one(self) -> str:
        draw = self.random.random()
        query = {
            "model": self.random.choice(("dit", "unet")),
            "class": self.random.randrange(10),
            "steps": self.random.randint(1, 20),
            "guidance": self.random.choice((1, 2)),
            "sampler": self.random.choice(PLAIN),
        }
        if draw < HANG_UPS:
            return await self._hang_up(query | {"steps": 250})
        if draw < HANG_UPS + STREAMS:
            return await self._stream(query)
        async with self.server.session.post("/generate", params=query) as answer:
            body = await answer.read()
        return "picture" if answer.status == 200 and body.startswith(PICTURE) else f"status {answer.status}"

    async def _hang_up(self, query: Query) -> str:
        asking = asyncio.ensure_future(self.server.session.post("/generate", params=query))
        await asyncio.wait({asking}, timeout=self.random.uniform(0, HANG_UP_SECONDS))
        if asking.done():
            asking.result().close()
        asking.cancel()
        return "hung up"

    async def _stream(self, query: Query) -> str:
        headers = {"Accept": "text/event-stream"}
        async with self.server.session.post("/generate", params=query, headers=headers) as answer:
            body = await answer.read()
        return "stream" if body.count(COMPLETED) == 1 else f"stream without one end, status {answer.status}"


def is_due(taken: int, done: int, requests: int, samples: int) -> bool:
    """Whether the next sample is due: one is taken each time 1 / samples of the requests were sent."""
    return taken < samples and done * samples >= taken * requests


async def soak(requests: int, clients: int, samples: int = 40) -> Report:
    settings = {"models": json.dumps(MODELS), "device": "cpu", "max_rows": 64, "log_level": "warning"}
    settings |= {"shed_load": False}  # else a busy machine refuses requests, and every request must get an image
    async with serving(**settings) as server:
        run, taken, started = Soak(server, requests), list[Sample](), time.monotonic()
        working = asyncio.gather(*(run.client() for _ in range(clients)))
        while not working.done():
            done = requests - max(run.left, 0)
            if is_due(len(taken), done, requests, samples):
                state = (server.resident_mib(), server.threads(), server.open_files())
                taken.append(Sample(done, time.monotonic() - started, *state))
                print(f"{done:>9} requests  {state[0]:.0f} MiB  {state[1]} threads  {state[2]} files", flush=True)
            await asyncio.wait({working}, timeout=0.05)
        await working
        return Report(dict(run.answers), await _counted(server), await _left(server), taken)


async def _counted(server: Server) -> dict[str, int]:
    outcomes = ("ok", "rejected", "cancelled", "expired", "error")
    return {o: int(await server.metric("diffusion_requests_total", outcome=o)) for o in outcomes}


async def _left(server: Server) -> dict[str, float]:
    """Gauges that must be 0, read after a second: the server notices a client that hung up within a step."""
    await asyncio.sleep(1)
    gauges = ("running_slots", "queue_depth", "backlog_seconds")
    return {gauge: await server.metric(f"diffusion_{gauge}") for gauge in gauges}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = asyncio.run(soak(arguments.requests, arguments.clients))
    print(f"answers: {report.answers}\ncounted by the server: {report.counted}\nleft: {report.left}")
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(report), indent=1))
    print("\n".join(report.faults) or "nothing was lost, nothing is left")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
