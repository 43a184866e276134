"""The service under load over HTTP, beside plain servers on the same device, in one run.

python -m benchmarks.gpu.load

All servers run, and one is under load. Its clients are several processes on the same machine.
"""

import argparse
import asyncio
import math
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, closing
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from benchmarks import process_tree
from benchmarks.client import Server, serving, started
from benchmarks.gpu.device import DEVICE, DRY, parse
from benchmarks.gpu.results import guarded, note
from benchmarks.serving.client import Client
from benchmarks.serving.load import OK, REFUSED, Answer, offer, repeat
from benchmarks.serving.servers import write_request
from benchmarks.serving.summary import summarise
from benchmarks.serving.workloads import H100, Closed, Kind, Open, Workload, capacity, mixed

OURS: dict[str, dict[str, Any]] = {"ours": {"shed_load": False}, "ours, defaults": {}}
OTHERS = {"batch-graph": ["--graphs"], "batch": [], "naive": ["--rows", "1"]}
SETTINGS = {"device": DEVICE.type, "max_requests": 100_000, "max_evaluations": 10**8, "log_level": "warning"}
SMALL = {"dtype": "float32", "max_rows": 8, "threads": 1, "http_workers": 1}
KINDS = {"same": Kind("dit", 10, 1.5), "npy16": Kind("dit", 10, 1.5, images=16)}
CLIENTS = (1, 2) if DRY else (1, 16, 64, 256)
CROWD = 2 if DRY else 64  # clients, for mixed and for large requests
SECONDS = 1.0 if DRY else 3.0
PROCESSES = 1 if DRY else 4


class Cell(NamedTuple):
    """A line of the table; a rate of 0 is a closed loop."""

    server: str
    workload: str
    clients: int = 0
    rate: float = 0.0

    def share(self, processes: int) -> Workload:
        """Of one of so many processes. The device is the one whose models are mixed; nothing else of it counts."""
        if self.rate:
            return Open("mixed", ((self.rate / processes / capacity(H100), SECONDS),), device=H100)
        kind = KINDS.get(self.workload, KINDS["same"])
        form = "npy" if self.workload == "npy16" else "png"
        return Closed(self.workload, self.clients // processes, kind, SECONDS, H100, form)


def cells() -> list[Cell]:
    """Before the last ones, whose rate follows from these."""
    plan = [
        Cell(server, "same", clients)
        for clients in CLIENTS
        for server in (*OURS, *OTHERS)
        if (server, clients) not in {("ours, defaults", 1), ("batch", 256), ("naive", 256)}
    ]
    plan += [Cell(server, "mixed", CROWD) for server in (*OURS, *OTHERS)]
    return [*plan, Cell("ours", "npy16", 1), Cell("ours", "npy16", CROWD)]


def client_processes() -> ProcessPoolExecutor:
    """PROCESSES processes for clients, all of them ready: one that still imports torch would join a run late."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(PROCESSES, context, initializer=context.Barrier(PROCESSES).wait)
    list(pool.map(abs, range(PROCESSES)))  # each task starts a process, and none ends before all have started
    return pool


def ask(server: str, port: int, workload: Workload, seed: int) -> list[Answer]:
    """What one process of clients sees."""
    return asyncio.run(_ask("stepwise" if server in OURS else "fastapi", port, workload, seed))


async def _ask(system: str, port: int, workload: Workload, seed: int) -> list[Answer]:
    form = workload.form if isinstance(workload, Closed) else "png"
    write = cache(lambda kind: write_request(system, port, kind, form))
    with closing(Client("127.0.0.1", port)) as client:
        if isinstance(workload, Open):
            return await offer(client, list(workload.arrivals(seed)), write)
        endless = mixed(list(H100.costs), 1.0, math.inf, np.random.default_rng(seed))
        kinds = (kind for _, kind in endless) if workload.name == "mixed" else None
        return await repeat(client, workload, write, kinds)


async def measure(pool: ProcessPoolExecutor, server: Server, cell: Cell) -> dict[str, Any]:
    processes = min(PROCESSES, cell.clients or PROCESSES)
    workload, pid = cell.share(processes), server.process.pid
    cpu, began = process_tree.cpu_seconds(pid), time.monotonic()
    loop, place = asyncio.get_running_loop(), (cell.server, server.port, workload)
    runs = await asyncio.gather(*(loop.run_in_executor(pool, ask, *place, seed) for seed in range(processes)))
    wall = time.monotonic() - began
    found = summarise(workload, [answer for run in runs for answer in run])
    outcomes = found["outcomes"]
    facts = {"answers_per_s": round(found["answers"], 1), "images_per_s": round(found["images"], 1)}
    if outcomes.get(OK):
        facts |= {name: round(found[name], 2) for name in ("p50_ms", "p95_ms")}
    return facts | {
        "refused": outcomes.get(REFUSED, 0),
        "other": found["sent"] - outcomes.get(OK, 0) - outcomes.get(REFUSED, 0),
        "answers": outcomes.get(OK, 0),
        "server_cpu": round((process_tree.cpu_seconds(pid) - cpu) / wall, 2),
    }


def starting(name: str) -> AbstractAsyncContextManager[Server]:
    if name in OURS:
        return serving(**(SETTINGS | (SMALL if DRY else {}) | OURS[name]))
    command = [sys.executable, "-m", "benchmarks.gpu.pipelines", *OTHERS[name], *(["--dry"] if DRY else [])]
    return started(command, dict(os.environ), "/health")


async def start(stack: AsyncExitStack, names: list[str]) -> dict[str, Server]:
    """Those that become ready."""
    began, servers = time.monotonic(), dict[str, Server]()

    async def one(name: str) -> None:
        with guarded("servers", server=name):
            servers[name] = await stack.enter_async_context(starting(name))
            note("servers", server=name, ready_s=round(time.monotonic() - began, 1))

    await asyncio.gather(*(one(name) for name in names))
    return servers


async def measure_all(pool: ProcessPoolExecutor, names: list[str]) -> None:
    async with AsyncExitStack() as stack:
        servers, mixed_rate = await start(stack, names), 2.0 if DRY else 0.0

        async def line(cell: Cell) -> float:
            label = {"server": cell.server, "workload": cell.workload}
            label |= {"load": f"{cell.rate:.0f}/s" if cell.rate else cell.clients}
            with guarded("load", **label):
                return note("load", **label, **await measure(pool, servers[cell.server], cell))["answers_per_s"]
            return 0.0

        for cell in (cell for cell in cells() if cell.server in servers):
            rate = await line(cell)
            if (cell.server, cell.workload) == ("ours", "mixed"):
                mixed_rate = rate or mixed_rate
        for server in ("ours", "ours, defaults", "batch-graph"):
            if server in servers and mixed_rate:
                await line(Cell(server, "mixed", rate=mixed_rate / 2))


def main() -> None:
    parse(argparse.ArgumentParser(description=__doc__))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a time limit ends the servers, too
    names = ["ours", "batch-graph"] if DRY else [*OURS, *OTHERS]
    with client_processes() as pool:
        asyncio.run(measure_all(pool, names))


if __name__ == "__main__":
    main()
