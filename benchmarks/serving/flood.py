"""How a flood of refused requests changes the answers to other requests, and what a refusal costs.

    python -m benchmarks.serving.flood [--rate 1000]

The workload W2-70 of benchmarks.serving runs alone. Then it runs beside a thousand requests a second of a client
whose key is beyond its quota (429), and then beside as many with a deadline that even an idle device could not meet
(503). A process of its own sends the flood.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from urllib.parse import urlencode

from benchmarks import ROOT, process_tree
from benchmarks.client import Server
from benchmarks.serving.client import Client
from benchmarks.serving.load import ask, offer
from benchmarks.serving.servers import ENGINE, WORKER, http_post, run_server, write_request
from benchmarks.serving.summary import summarise
from benchmarks.serving.workloads import TIMEOUT, Kind, Open, workloads

LEAST_REFUSED = 0.95  # share of the flood's requests; its quota lets the first ones through
KEYS: dict[str, dict[str, str | int]] = {
    "guest": {"key": "guest-has-a-key-of-its-own"},
    "flood": {"key": "flood-has-a-key-of-its-own", "requests_per_second": 1},
}
FLOOD_KIND = Kind("dit", 100)  # of the requests of the flood
FLOODS = {"none": 0, "quota": 429, "deadline": 503}  # and the status of their answers


def request_of(flood: str, port: int) -> bytes:
    fields = {"model": FLOOD_KIND.model, "class": 0, "steps": FLOOD_KIND.steps}
    key, more = ("flood", "") if flood == "quota" else ("guest", "&deadline_ms=1")
    return http_post(
        f"/generate?{urlencode(fields)}{more}", f"127.0.0.1:{port}", headers=f"X-API-Key: {KEYS[key]['key']}\r\n"
    )


async def send(flood: str, port: int, rate: float, seconds: float) -> dict[int, int]:
    """How many requests of the flood were answered, by status; 0: within TIMEOUT by none."""
    client, statuses, running = Client("127.0.0.1", port), Counter[int](), set[asyncio.Task[None]]()
    request, started = request_of(flood, port), time.monotonic()

    async def one() -> None:
        reply = await ask(client, request, time.monotonic() + TIMEOUT)
        statuses[reply.status if reply else 0] += 1

    for number in range(int(rate * seconds)):
        if (rest := started + number / rate - time.monotonic()) > 0.002:
            await asyncio.sleep(rest)
        task = asyncio.create_task(one())
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    client.close()
    return statuses


async def measure(flood: str, rate: float, workload: Open) -> dict[str, float]:
    keys = json.dumps(KEYS)
    async with run_server("stepwise", workload.device, api_keys=keys, http_workers=1) as server:
        headers = f"X-API-Key: {KEYS['guest']['key']}\r\n"
        write = partial(write_request, "stepwise", server.port, headers=headers)
        with (
            closing(Client("127.0.0.1", server.port)) as client,
            start_flood(flood, server, rate, workload) as sender,
        ):
            before, started = process_seconds(server), time.monotonic()
            answers = await offer(client, list(workload.arrivals()), write)
            engine, worker = (late - early for early, late in zip(before, process_seconds(server), strict=True))
            seconds = time.monotonic() - started
            statuses = json.loads(sender.communicate()[0]) if sender else {}
    refusals = statuses.get(str(FLOODS[flood]), 0)
    if refusals < LEAST_REFUSED * sum(statuses.values()):
        raise RuntimeError(f"the flood must be answered with {FLOODS[flood]}, and was with {statuses}")
    figures = summarise(workload, answers)
    return {
        "good": figures["good"],
        "engine_cores": engine / seconds,
        "worker_cores": worker / seconds,
        "refusals": refusals / workload.seconds,
    }


def process_seconds(server: Server) -> list[float]:
    """CPU time of the engine and of the worker."""
    return [process_tree.cpu_seconds_of_module(server.process.pid, module) for module in (ENGINE, WORKER)]


def start_flood(
    flood: str, server: Server, rate: float, workload: Open
) -> AbstractContextManager["subprocess.Popen[str] | None"]:
    """The process that sends the flood; it begins as this returns. None for the flood "none"."""
    if flood == "none":
        return nullcontext()
    command = [sys.executable, "-m", "benchmarks.serving.flood", "--send", flood, "--port", str(server.port)]
    command += ["--rate", str(rate), "--seconds", str(workload.seconds)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.readline()  # imports take a second, which would otherwise be counted as time of the flood
    return process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000.0, help="refused requests a second")
    parser.add_argument("--scale", type=float, default=1.0, help="of all durations")
    parser.add_argument("--send", choices=FLOODS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.send:
        print("begins", flush=True)
        print(json.dumps(asyncio.run(send(given.send, given.port, given.rate, given.seconds))))
        return
    workload = workloads(given.scale)["W2-70"]
    assert isinstance(workload, Open)
    print("| flood | good answers | refusals | engine, cores | worker, cores | CPU a refusal |")
    print("|---|---|---|---|---|---|")
    found: dict[str, dict[str, float]] = {}
    for flood in FLOODS:
        now = found[flood] = asyncio.run(measure(flood, given.rate, workload))
        more = sum(now[part] - found["none"][part] for part in ("engine_cores", "worker_cores"))
        a_refusal = f"{1000 * more / now['refusals']:.2f} ms" if now["refusals"] else ""
        print(
            f"| {flood} | {now['good']:.0f}/s | {now['refusals']:.0f}/s | {now['engine_cores']:.3f} "
            f"| {now['worker_cores']:.3f} | {a_refusal} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
