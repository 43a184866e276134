"""The supervisor, the engine and two HTTP workers, over real sockets: who dies, and what that costs."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
import pytest

from benchmarks import client
from benchmarks.client import reserved_port
from service.supervisor import ENGINE_DIED, WORKERS_FAIL
from tests.service.process import ROOT, command, environment, serving
from tests.waiting import wait_until

QUERY = {"model": "dit", "class": "cat", "steps": 200, "guidance": 1}
WATCHER = "a-key-that-only-watches"
SHORT = QUERY | {"steps": 2}


def simulated(checkpoints: Path, t0_ms: float) -> str:
    entry = {"checkpoint": str(checkpoints / "dit"), "simulate": {"t0_ms": t0_ms, "t1_ms": 0}}
    return json.dumps({"dit": entry})


@contextmanager
def two_workers(checkpoints: Path, folder: Path, **changes: Any) -> Iterator["Processes"]:
    settings = {"models": simulated(checkpoints, 10), "http_workers": 2} | changes
    with (folder / "log").open("w+") as log, serving(checkpoints, log, **settings) as (process, url):
        processes = Processes(process, url, folder / "log")
        wait_until(lambda: "listening on" in processes.log)
        try:
            yield processes
        finally:
            for session in processes.sessions:
                session.close()
            leftover = [] if process.poll() is not None else processes.children()
            process.kill()
            psutil.wait_procs(leftover, timeout=60)


class Processes:
    """A running service."""

    def __init__(self, supervisor: "subprocess.Popen[str]", url: str, log: Path):
        self.supervisor, self.url, self._log = supervisor, url, log
        self.sessions: list[httpx.Client] = []

    @property
    def log(self) -> str:
        return self._log.read_text()

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.supervisor.pid).children()

    def engine(self) -> psutil.Process:
        (found,) = (child for child in self.children() if "service.engine_process" in " ".join(child.cmdline()))
        return found

    def workers(self) -> list[psutil.Process]:
        return [child for child in self.children() if "service.web.worker" in " ".join(child.cmdline())]

    def metric(self, name: str, **labels: str) -> float:
        answer = httpx.get(f"{self.url}/metrics", headers={"X-API-Key": WATCHER}, timeout=60)
        return client.metric(answer.text, name, **labels)

    def ask(self, **query: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/generate", params=SHORT | query, timeout=60)

    def ask_each_worker(self) -> dict[int, httpx.Client]:
        """A kept connection to each worker, by its process id."""
        found: dict[int, httpx.Client] = {}
        workers = {worker.pid for worker in self.workers()}
        while set(found) != workers:
            session = httpx.Client(base_url=self.url, timeout=60)
            self.sessions.append(session)
            session.get("/livez")
            found |= {pid: session for pid in workers - set(found) if _holds(pid, session)}
        return found


def _holds(pid: int, session: httpx.Client) -> bool:
    """Whether the connection that a client keeps open ends in this process."""
    stream = cast(Any, session)._transport._pool.connections[0]._connection._network_stream
    port = stream.get_extra_info("client_addr")[1]
    return any(other.raddr and other.raddr.port == port for other in psutil.Process(pid).net_connections("tcp"))


def test_a_worker_imports_no_torch_and_stays_small(checkpoints: Path, tmp_path: Path) -> None:
    with two_workers(checkpoints, tmp_path) as service:
        assert service.ask().status_code == 200
        for worker in (*service.workers(), psutil.Process(service.supervisor.pid)):
            assert not any("torch" in file.path for file in worker.memory_maps())
            assert worker.memory_full_info().uss < 100 * 1024 * 1024


def test_a_killed_worker_costs_its_own_connections_only(checkpoints: Path, tmp_path: Path) -> None:
    with two_workers(checkpoints, tmp_path) as service, ThreadPoolExecutor(2) as pool:
        assert service.ask().status_code == 200
        (doomed, lost), (_, kept) = service.ask_each_worker().items()
        answers = [pool.submit(session.post, "/generate", params=QUERY) for session in (lost, kept)]
        wait_until(lambda: service.metric("diffusion_running_slots") == 2)
        os.kill(doomed, signal.SIGKILL)
        assert isinstance(answers[0].exception(), httpx.TransportError)
        wait_until(lambda: service.metric("diffusion_running_slots") == 1)  # its work has ended
        assert service.metric("diffusion_cancelled_evaluations_saved_total") > 0
        assert answers[1].result().status_code == 200
        wait_until(lambda: len(service.workers()) == 2)
        assert doomed not in {worker.pid for worker in service.workers()}
        assert service.metric("diffusion_requests_total", outcome="ok") == 2  # what it had counted is kept
        for session in service.ask_each_worker().values():
            assert session.post("/generate", params=SHORT).status_code == 200
        assert service.metric("diffusion_requests_total", outcome="ok") == 4
        assert "has ended with code -9: starting another one" in service.log


def test_a_scrape_of_any_worker_includes_every_answer(checkpoints: Path, tmp_path: Path) -> None:
    with two_workers(checkpoints, tmp_path, models=simulated(checkpoints, 1)) as service:
        sessions, other = list(service.ask_each_worker().values()), ""
        for count in range(1, 21):
            assert sessions[count % 2].post("/generate", params=SHORT).status_code == 200
            other = sessions[(count + 1) % 2].get("/metrics").text
            assert client.metric(other, "diffusion_requests_total", outcome="ok") == count
        assert client.metric(other, "diffusion_worker_connections") >= 2


def test_quotas_are_those_of_the_service(checkpoints: Path, tmp_path: Path) -> None:
    keys = {"alice": {"key": "alice-has-a-secret-key", "concurrency": 1}}
    keys |= {"bob": {"key": "bob-has-another-secret", "requests_per_second": 1e-6, "burst": 3}}
    alice, bob = ({"X-API-Key": key["key"]} for key in keys.values())
    keys |= {"watcher": {"key": WATCHER}}
    with two_workers(checkpoints, tmp_path, api_keys=json.dumps(keys)) as service, ThreadPoolExecutor(1) as pool:
        (first, one), (_, other) = service.ask_each_worker().items()
        statuses = [
            session.post("/generate", params=SHORT, headers=bob).status_code for session in (one, other) * 3
        ]
        assert statuses == [200, 200, 200, 429, 429, 429]
        pool.submit(one.post, "/generate", params=QUERY, headers=alice)
        wait_until(lambda: service.metric("diffusion_key_requests_total", key="alice", outcome="accepted") == 1)
        assert other.post("/generate", params=SHORT, headers=alice).status_code == 429
        os.kill(first, signal.SIGKILL)  # and with it goes the request that held the place
        wait_until(lambda: other.post("/generate", params=SHORT, headers=alice).status_code == 200)


def test_a_killed_engine_is_told_to_every_open_request(checkpoints: Path, tmp_path: Path) -> None:
    with two_workers(checkpoints, tmp_path) as service, ThreadPoolExecutor(2) as pool:
        sessions = service.ask_each_worker().values()
        answers = [pool.submit(session.post, "/generate", params=QUERY) for session in sessions]
        wait_until(lambda: service.metric("diffusion_running_slots") == 2)
        children = service.children()
        service.engine().kill()
        for answer in answers:
            assert answer.result().status_code == 503
            assert "the engine has stopped" in answer.result().json()["detail"]
        assert service.supervisor.wait(timeout=60) == ENGINE_DIED
        assert psutil.wait_procs(children, timeout=60)[1] == []


def test_children_end_with_a_killed_supervisor(checkpoints: Path, tmp_path: Path) -> None:
    with two_workers(checkpoints, tmp_path) as service:
        children = service.children()
        service.supervisor.kill()
        assert psutil.wait_procs(children, timeout=60)[1] == []
    assert "Traceback" not in service.log


def test_children_ignore_the_signals_of_a_terminal(checkpoints: Path, tmp_path: Path) -> None:
    with two_workers(checkpoints, tmp_path) as service:
        before = {child.pid for child in service.children()}
        for child in service.children():
            child.send_signal(signal.SIGINT)
            child.send_signal(signal.SIGTERM)
        assert service.ask().status_code == 200
        assert {child.pid for child in service.children()} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_workers_drain_at_a_signal(checkpoints: Path, tmp_path: Path, number: signal.Signals) -> None:
    with two_workers(checkpoints, tmp_path) as service, ThreadPoolExecutor(2) as pool:
        sessions = service.ask_each_worker().values()
        answers = [pool.submit(session.post, "/generate", params=QUERY) for session in sessions]
        wait_until(lambda: service.metric("diffusion_running_slots") == 2)
        service.supervisor.send_signal(number)
        assert [answer.result().status_code for answer in answers] == [200, 200]
        assert service.supervisor.wait(timeout=60) == 0
        assert "Traceback" not in service.log


def test_workers_that_cannot_start_end_the_service(checkpoints: Path, tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise SystemExit(7)")  # found before the real one
    settings = environment(checkpoints=checkpoints, device="cpu", models=simulated(checkpoints, 1))
    with reserved_port() as port:
        ended = subprocess.run(
            command(port), cwd=ROOT, env=settings | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
    assert ended.returncode == WORKERS_FAIL
    assert len(re.findall("worker 1 has ended with code 7", ended.stderr)) == 5


def test_a_broken_checkpoint_is_one_sentence(checkpoints: Path) -> None:
    models = json.dumps({"dit": {"checkpoint": str(checkpoints / "nowhere")}})
    settings = environment(device="cpu", models=models)
    with reserved_port() as port:
        ended = subprocess.run(command(port), cwd=ROOT, env=settings, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: model dit: ")
    assert ended.stderr.count("\n") == 1
