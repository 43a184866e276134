"""What a flood of requests that are refused takes from those that are not.

    python -m benchmarks.serving.flood [--rate 1000]

W2-70 alone, then beside a thousand requests a second of a client whose key is beyond its quota (429), then beside
as many that name a deadline that no idle device could meet (503). The flood comes from a process of its own.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from functools import partial

from benchmarks import process_tree
from benchmarks.client import ROOT, Server
from benchmarks.serving.client import Client
from benchmarks.serving.load import ask, offer
from benchmarks.serving.servers import ENGINE, WORKER, http_post, run_server, write_request
from benchmarks.serving.summary import Cost, summarise
from benchmarks.serving.workloads import TIMEOUT, Kind, Open, workloads

KEYS: dict[str, dict[str, str | int]] = {
    "guest": {"key": "guest-has-a-key-of-its-own"},
    "flood": {"key": "flood-has-a-key-of-its-own", "requests_per_second": 1},
}
HOPELESS = Kind("dit", 100)
FLOODS = {"none": 0, "quota": 429, "deadline": 503}  # and what they are answered with
QUIET = Cost(0.0, 0.0, 0.0, 0.0, 1.0)  # of the server as a whole; the flood's share of it is told here


def request_of(flood: str, port: int) -> bytes:
    fields = {"model": HOPELESS.model, "class": 0, "steps": HOPELESS.steps}
    key, more = ("flood", "") if flood == "quota" else ("guest", "&deadline_ms=1")
    query = "&".join(f"{name}={value}" for name, value in fields.items()) + more
    return http_post(f"/generate?{query}", f"127.0.0.1:{port}", headers=f"X-API-Key: {KEYS[key]['key']}\r\n")


async def send(flood: str, port: int, rate: float, seconds: float) -> dict[int, int]:
    """How often it was answered with which status."""
    client, statuses, running = Client("127.0.0.1", port), dict[int, int](), set[asyncio.Task[None]]()
    request, started = request_of(flood, port), time.monotonic()

    async def one() -> None:
        reply = await ask(client, request, time.monotonic() + TIMEOUT)
        status = reply.status if reply else 0
        statuses[status] = statuses.get(status, 0) + 1

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
        client, started = Client("127.0.0.1", server.port), time.monotonic()
        before, flooding = process_seconds(server), start_flood(flood, server, rate, workload)
        answers = await offer(client, list(workload.arrivals()), write)
        engine, worker = (late - early for early, late in zip(before, process_seconds(server), strict=True))
        seconds = time.monotonic() - started
        client.close()
        statuses = json.loads(flooding.communicate()[0]) if flooding else {}
        wrong = {status: count for status, count in statuses.items() if int(status) != FLOODS[flood]}
        assert sum(wrong.values()) <= rate, (
            f"the flood was answered with {statuses}"
        )  # its first ones fit the quota
    figures = summarise(workload, answers, None, QUIET)
    return {
        "good": figures["good"],
        "engine_cores": engine / seconds,
        "worker_cores": worker / seconds,
        "refusals": sum(statuses.values()) / workload.seconds,
    }


def process_seconds(server: Server) -> list[float]:
    """CPU time of the engine and of the worker."""
    return [process_tree.cpu_of(server.process.pid, module) for module in (ENGINE, WORKER)]


def start_flood(flood: str, server: Server, rate: float, workload: Open) -> "subprocess.Popen[str] | None":
    if flood == "none":
        return None
    command = [sys.executable, "-m", "benchmarks.serving.flood", "--send", flood, "--port", str(server.port)]
    command += ["--rate", str(rate), "--seconds", str(workload.seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000.0, help="refused requests a second")
    parser.add_argument("--scale", type=float, default=1.0, help="of all durations")
    parser.add_argument("--send", choices=FLOODS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.send:
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
