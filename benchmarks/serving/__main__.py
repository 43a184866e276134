"""Measures servers in front of a simulated accelerator, and compares them with an ideal one.

    python -m benchmarks.serving [--only W1 W2-70] [--systems stepwise ideal] [--scale 1] [--repeats 1]

W1   closed loop, 64 clients        W2-x  mixed requests at x % of the capacity, open loop
W4   one client, 20 steps           W5    50 %, then 150 %, then 50 %
H-x  x clients, steps of an H100    W6    70 %, of which 30 % leave before they are answered

The figures are good answers, refusals, latencies and CPU time. They are kept in docs/serving.json. The tables and
the picture of the documents are made from that file; --report does only that. No other program may be busy, because
clients and server share the cores. A run is repeated, at most twice, if other programs or the hypervisor took more
than a twentieth of a core.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import time
from collections.abc import Iterable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import ROOT, process_tree
from benchmarks.client import Server
from benchmarks.serving import ideal, report
from benchmarks.serving.client import Client
from benchmarks.serving.load import offer, repeat
from benchmarks.serving.servers import ENGINE, SYSTEMS, can_run, run_server, write_request
from benchmarks.serving.summary import Cost, is_disturbed, summarise, window
from benchmarks.serving.workloads import Closed, Workload, workloads
from benchmarks.versions import short_commit

JSON = ROOT / "docs" / "serving.json"
IDEAL = "ideal"
TRIES = 3  # of a run


async def measure(system: str, server: Server, workload: Workload) -> dict[str, Any]:
    """Run a workload against a running server; returns the figures of summarise."""
    form = workload.form if isinstance(workload, Closed) else "png"
    arrivals = [] if isinstance(workload, Closed) else list(workload.arrivals())
    rows_before = await rows_run(server) if system == "stepwise" else 0.0
    write = cache(lambda kind: write_request(system, server.port, kind, form))
    cost = asyncio.create_task(watch_cost(server, *window(workload)))
    with closing(Client("127.0.0.1", server.port)) as client:
        is_closed = isinstance(workload, Closed)
        answers = await (repeat(client, workload, write) if is_closed else offer(client, arrivals, write))
    rows = await rows_run(server) - rows_before if system == "stepwise" else None
    return summarise(workload, answers, rows, await cost)


async def rows_run(server: Server) -> float:
    """Rows that this service has run since its start."""
    return await server.metric("diffusion_evaluations_total")


async def watch_cost(server: Server, start: float, end: float) -> Cost:
    """CPU time between `start` and `end`, in seconds from now."""
    pid, began = server.process.pid, time.monotonic()

    def used() -> tuple[float, ...]:
        engine = process_tree.cpu_seconds_of_module(pid, ENGINE)
        return process_tree.cpu_seconds(pid), engine, time.process_time(), process_tree.machine_cpu_seconds()

    await asyncio.sleep(start)
    before, at = used(), time.monotonic()
    await asyncio.sleep(began + end - time.monotonic())
    server_seconds, engine, client, machine = (late - early for early, late in zip(before, used(), strict=True))
    elsewhere = machine - server_seconds - client
    return Cost(server_seconds, engine, client, elsewhere, time.monotonic() - at)


async def measure_all(system: str, wanted: list[Workload], repeats: int) -> dict[str, dict[str, Any]]:
    """The median run of each workload. Every run has a new server, because an overload may outlast its run."""
    found: dict[str, dict[str, Any]] = {}
    for workload in (workload for workload in wanted if can_run(system, workload)):
        runs = [await undisturbed(system, workload) for _ in range(repeats)]
        found[workload.name] = median(runs)
        print(system, workload.name, found[workload.name], flush=True)
    return found


async def undisturbed(system: str, workload: Workload) -> dict[str, Any]:
    """The first run that nothing disturbs, or the least disturbed of TRIES."""
    tries = list[dict[str, Any]]()
    for _ in range(TRIES):
        async with run_server(system, workload.device) as server:
            tries.append(await measure(system, server, workload))
        if not is_disturbed(tries[-1]):
            return tries[-1]
        print(system, workload.name, "disturbed:", tries[-1]["elsewhere_cores"], "cores", flush=True)
    return min(tries, key=lambda run: run["elsewhere_cores"])


def median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median run by good answers, or by images in a closed loop."""
    key = "good" if "in_time" in runs[0] else "images"
    middle = statistics.median_low(run[key] for run in runs)
    return next(run for run in runs if run[key] == middle) | {"runs": len(runs)}


def measured_at() -> dict[str, str]:
    return {
        "commit": short_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "cores": str(os.cpu_count()),
    }


def run(system: str, wanted: list[Workload], repeats: int) -> dict[str, dict[str, Any]]:
    if system == IDEAL:
        return {workload.name: summarise(workload, *ideal.simulate(workload)) for workload in wanted}
    return asyncio.run(measure_all(system, wanted, repeats))


def keep(path: Path, column: str, runs: dict[str, dict[str, Any]]) -> None:
    """Add runs to a column of the file; its runs of other workloads stay."""
    columns = json.loads(path.read_text()) if path.exists() else {}
    kept = columns.setdefault(column, {"runs": {}})
    kept["runs"] |= runs
    kept |= measured_at()
    path.write_text(json.dumps(columns, indent=1, sort_keys=True) + "\n")


def chosen(names: Iterable[str] | None, scale: float) -> list[Workload]:
    found = workloads(scale)
    return [found[name] for name in names or found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(workloads()), metavar="WORKLOAD")
    parser.add_argument("--systems", nargs="+", choices=[*SYSTEMS, IDEAL], default=[*SYSTEMS, IDEAL])
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all durations, for a short try")
    parser.add_argument("--repeats", type=int, default=1, help="of each workload; the median run is kept")
    parser.add_argument("--column", default="now", help="under which the figures of this service are kept")
    parser.add_argument("--json", type=Path, default=JSON)
    parser.add_argument("--report", action="store_true", help="measure nothing, write tables and picture again")
    given = parser.parse_args()
    for system in [] if given.report else given.systems:
        runs = run(system, chosen(given.only, given.scale), given.repeats)
        keep(given.json, given.column if system == "stepwise" else system, runs)
    if given.json == JSON:
        report.write(json.loads(JSON.read_text()), ROOT)


if __name__ == "__main__":
    main()
