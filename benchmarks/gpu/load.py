"""The service under load over HTTP, beside plain servers on the same device, in one run.

python -m benchmarks.gpu.load

All servers run at the same time, and one of them is under load. Its clients are several processes on this machine.
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
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks import process_tree
from benchmarks.client import Server, serving, started
from benchmarks.gpu.device import DEVICE, DRY, parse
from benchmarks.gpu.results import record_failures, record_result
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
MANY_CLIENTS = 2 if DRY else 64  # for mixed and for large requests
SECONDS = 1.0 if DRY else 3.0
PROCESSES = 1 if DRY else 4


class LoadCase(NamedTuple):
    """A server under one load: a closed loop of clients, or an open loop where `rate` (a second) is not 0."""

    server: str
    requests: str  # "same", "mixed" or "npy16"
    clients: int = 0
    rate: float = 0.0

    def workload(self, processes: int) -> Workload:
        """The part of the load that one of `processes` client processes sends.

        Of the device, only the names of its models count.
        """
        if self.rate:
            return Open("mixed", ((self.rate / processes / capacity(H100), SECONDS),), device=H100)
        kind = KINDS.get(self.requests, KINDS["same"])
        form = "npy" if self.requests == "npy16" else "png"
        return Closed(self.requests, self.clients // processes, kind, SECONDS, H100, form)


def load_cases() -> list[LoadCase]:
    """The closed loops. Open loops follow them, at a rate that depends on their results."""
    plan = [
        LoadCase(server, "same", clients)
        for clients in CLIENTS
        for server in (*OURS, *OTHERS)
        if (server, clients) not in {("ours, defaults", 1), ("batch", 256), ("naive", 256)}
    ]
    plan += [LoadCase(server, "mixed", MANY_CLIENTS) for server in (*OURS, *OTHERS)]
    return [*plan, LoadCase("ours", "npy16", 1), LoadCase("ours", "npy16", MANY_CLIENTS)]


def client_processes() -> ProcessPoolExecutor:
    """PROCESSES processes for clients, all of them ready: one that still imports torch would join a run late."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(PROCESSES, context, initializer=context.Barrier(PROCESSES).wait)
    list(pool.map(abs, range(PROCESSES)))  # each task starts a process, and none ends before all have started
    return pool


def run_clients(server: str, port: int, workload: Workload, seed: int) -> list[Answer]:
    """Run a workload in a client process."""
    return asyncio.run(_run_clients("stepwise" if server in OURS else "fastapi", port, workload, seed))


async def _run_clients(system: str, port: int, workload: Workload, seed: int) -> list[Answer]:
    form = workload.form if isinstance(workload, Closed) else "png"
    write = cache(lambda kind: write_request(system, port, kind, form))
    with closing(Client("127.0.0.1", port)) as client:
        if isinstance(workload, Open):
            return await offer(client, list(workload.arrivals(seed)), write)
        endless = mixed(list(H100.costs), 1.0, math.inf, np.random.default_rng(seed))
        kinds = (kind for _, kind in endless) if workload.name == "mixed" else None
        return await repeat(client, workload, write, kinds)


async def measure(pool: ProcessPoolExecutor, server: Server, case: LoadCase) -> dict[str, Any]:
    """Answers a second, latencies in ms, counts by outcome, and the mean number of cores that the server used."""
    processes = min(PROCESSES, case.clients or PROCESSES)
    workload, pid = case.workload(processes), server.process.pid
    cpu, began = process_tree.cpu_seconds(pid), time.monotonic()
    loop, call = asyncio.get_running_loop(), partial(run_clients, case.server, server.port, workload)
    runs = await asyncio.gather(*(loop.run_in_executor(pool, call, seed) for seed in range(processes)))
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
    """Start all at once; returns those that become ready."""
    began, servers = time.monotonic(), dict[str, Server]()

    async def one(name: str) -> None:
        with record_failures("servers", server=name):
            servers[name] = await stack.enter_async_context(starting(name))
            record_result("servers", server=name, ready_s=round(time.monotonic() - began, 1))

    await asyncio.gather(*(one(name) for name in names))
    return servers


async def measure_all(pool: ProcessPoolExecutor, names: list[str]) -> None:
    async with AsyncExitStack() as stack:
        servers, mixed_rate = await start(stack, names), 2.0 if DRY else 0.0

        async def answer_rate(case: LoadCase) -> float:
            label = {"server": case.server, "workload": case.requests}
            label |= {"load": f"{case.rate:.0f}/s" if case.rate else case.clients}
            with record_failures("load", **label):
                return record_result("load", **label, **await measure(pool, servers[case.server], case))[
                    "answers_per_s"
                ]
            return 0.0

        for case in (case for case in load_cases() if case.server in servers):
            rate = await answer_rate(case)
            if (case.server, case.requests) == ("ours", "mixed"):
                mixed_rate = rate or mixed_rate
        for server in ("ours", "ours, defaults", "batch-graph"):
            if server in servers and mixed_rate:
                await answer_rate(LoadCase(server, "mixed", rate=mixed_rate / 2))


def main() -> None:
    parse(argparse.ArgumentParser(description=__doc__))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a time limit ends the servers, too
    names = ["ours", "batch-graph"] if DRY else [*OURS, *OTHERS]
    with client_processes() as pool:
        asyncio.run(measure_all(pool, names))


if __name__ == "__main__":
    main()
