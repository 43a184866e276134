"""Ray Serve for real: a fleet of two replicas under load, with a kill, a dead engine and a drain.

Skipped as one where Ray is not installed (the extra `ray`).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.client import reserved_port
from models.files import SHIPPED
from service.settings import ModelEntry
from tests.service.networks import Lost, entry, simulated
from tests.service.process import ROOT, environment, status
from tests.waiting import wait_until

pytest.importorskip("ray", reason="needs the extra ray")

REGISTERED = 'diffusion_images_created{model="simulated"}'
START_SECONDS = 180.0  # a start takes 25 s on two idle cores


@dataclass
class Fleet:
    process: subprocess.Popen[str]
    url: str
    log: Path

    def replicas(self) -> list[int]:
        return [pid for pid, name in descendants(self.process.pid) if name.startswith("ray::ServeReplica")]

    def answering(self) -> int:
        """Replicas that are warm: each has registered its metrics at a time of its own."""
        with httpx.Client(base_url=self.url, timeout=60) as client:
            texts = [client.get("/metrics").text for _ in range(16)]
        return len({line for text in texts for line in text.splitlines() if line.startswith(REGISTERED)})

    def generate(self, **query: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/generate", params={"class": 3} | query, timeout=60)


def descendants(root: int) -> list[tuple[int, str]]:
    """Ids and command lines of what a process has started, and so on."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid, fields = int(folder.name), (folder / "stat").read_text().rpartition(")")[2].split()
            parents[pid], names[pid] = int(fields[1]), (folder / "cmdline").read_text()
        except OSError:  # it has ended meanwhile
            continue

    def descends(pid: int) -> bool:
        return pid == root or (pid in parents and descends(parents[pid]))

    return [(pid, name) for pid, name in names.items() if pid != root and descends(pid)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two replicas, with a simulated model and one that loses its device when class 1 is asked for."""
    models = {"simulated": simulated(SHIPPED / "dit", 20, 0.1), "mortal": entry(Lost)}
    with reserved_port() as port:
        yield from deployed(models, port, tmp_path_factory.mktemp("ray") / "log")


def deployed(models: dict[str, ModelEntry], port: int, log: Path) -> Iterator[Fleet]:
    """The fleet, until its tests end; Ray's own processes are killed where they outlive it."""
    command = [sys.executable, "-m", "service.ray_app", "--port", str(port), "replicas=2", "gpus=0", "cpus=0.5"]
    settings = environment(models=models, device="cpu", max_rows=8, drain_seconds=20)
    settings["RAY_USAGE_STATS_ENABLED"] = "0"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=output, stderr=output, text=True)
    made = Fleet(process, f"http://127.0.0.1:{port}", log)
    try:
        wait_or_skip(made)
        yield made
    finally:
        started = descendants(process.pid)
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
        left = dict(started)
        for pid in left.keys() & {int(folder.name) for folder in Path("/proc").glob("[0-9]*")}:
            os.kill(pid, signal.SIGKILL)


def wait_or_skip(fleet: Fleet) -> None:
    """Skip where Ray cannot start; what fails after its start fails the test."""
    deadline = time.monotonic() + START_SECONDS
    while status(f"{fleet.url}/readyz") != 200:
        if fleet.process.poll() is not None:
            text = fleet.log.read_text()
            assert 'ray.init("local")' in text, text[-2000:]
            pytest.skip(f"Ray does not start here: {text.strip().splitlines()[-1]}")
        if time.monotonic() > deadline:
            pytest.fail(f"Ray has started, but no replica was ready in {START_SECONDS:.0f} s")
        time.sleep(0.5)


def test_every_kind_of_route_is_there(fleet: Fleet) -> None:
    assert fleet.generate(model="simulated").content.startswith(b"\x89PNG")
    missing = fleet.generate(model="none")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    body = {"model": "simulated", "prompt": "3", "stream": True, "partial_images": 2}
    stream = httpx.post(f"{fleet.url}/v1/images/generations", json=body, timeout=60).text
    assert stream.count("event: image_generation.partial_image") == 2
    assert stream.count("event: image_generation.completed") == 1
    assert httpx.get(f"{fleet.url}/v2/health/ready").json() == {"ready": True}


def test_a_killed_replica_leaves_no_request_without_an_answer(fleet: Fleet) -> None:
    wait_until(lambda: fleet.answering() == 2, START_SECONDS)
    victim = fleet.replicas()[0]

    def client(_: int) -> list[int]:
        return answers_until_ok(lambda: fleet.generate(model="simulated", steps=250))

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(client, number) for number in range(16)]
        time.sleep(2.5)  # each of the first eight takes five seconds
        os.kill(victim, signal.SIGKILL)
        statuses = [answer.result() for answer in answers]
    assert {status for tries in statuses for status in tries} <= {200, 500, 503}
    assert [tries for tries in statuses if tries[-1] != 200] == []
    hit = [tries[0] == 500 for tries in statuses[:8]]
    assert any(hit), "nobody was on the killed replica"
    assert not all(hit), "the other replica answered nobody"
    wait_until(lambda: fleet.answering() == 2, START_SECONDS)
    assert victim not in fleet.replicas()


def answers_until_ok(ask: Callable[[], httpx.Response], tries: int = 30) -> list[int]:
    """Status codes; whoever was not served asks again half a second later."""
    statuses = [ask().status_code]
    while statuses[-1] != 200 and len(statuses) < tries:
        time.sleep(0.5)
        statuses.append(ask().status_code)
    return statuses


def test_a_replica_whose_engine_dies_is_replaced(fleet: Fleet) -> None:
    wait_until(lambda: fleet.answering() == 2, START_SECONDS)
    before = set(fleet.replicas())
    killer = fleet.generate(model="mortal", steps=5, guidance=1, **{"class": 1})
    assert killer.status_code == 503
    assert "the engine died" in killer.json()["detail"]
    wait_until(lambda: len(before & set(fleet.replicas())) == 1, START_SECONDS)
    wait_until(lambda: fleet.answering() == 2, START_SECONDS)
    assert answers_until_ok(lambda: fleet.generate(model="mortal", steps=5, guidance=1, **{"class": 0}))[-1] == 200


def test_a_signal_lets_open_requests_finish(fleet: Fleet) -> None:
    """The last test of the fleet, for it ends here."""
    answers_until_ok(lambda: fleet.generate(model="simulated"))
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(fleet.generate, model="simulated", steps=250) for _ in range(4)]
        time.sleep(2.0)
        fleet.process.send_signal(signal.SIGTERM)
        assert [answer.result().status_code for answer in answers] == [200] * 4
    assert fleet.process.wait(timeout=60) == 0
