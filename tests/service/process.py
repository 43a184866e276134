"""`python run.py serve` in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import httpx
import psutil

from benchmarks import client
from benchmarks.client import reserved_port
from tests.service.networks import simulated
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
QUERY = {"model": "dit", "class": "cat", "steps": 200, "guidance": 1}
WATCHER = "a-key-that-only-watches"
SHORT = QUERY | {"steps": 2}


def command(port: int) -> list[str]:
    return [sys.executable, "run.py", "serve", "--port", str(port)]


def environment(modules: Path | None = None, **settings: Any) -> dict[str, str]:
    """Without the settings of whoever runs the tests, and with these; a dict is written in JSON.

    modules: a folder whose modules are found before the real ones.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DIFFUSION_")}
    given = {f"DIFFUSION_{k.upper()}": _text(v) for k, v in settings.items()}
    return kept | {"OMP_NUM_THREADS": "1"} | given | ({"PYTHONPATH": str(modules)} if modules else {})


def _text(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return json.dumps(value, default=lambda entry: entry.model_dump(mode="json", exclude_none=True))


def run_program(program: str, **settings: Any) -> "subprocess.CompletedProcess[str]":
    """Run Python code in an interpreter of its own."""
    arguments = [sys.executable, "-c", program]
    variables = environment(**settings)
    return subprocess.run(arguments, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)


def failed_start(port: int = 0, **settings: Any) -> "subprocess.CompletedProcess[str]":
    """A server that is expected to end by itself."""
    given: dict[str, Any] = {"device": "cpu"} | settings
    variables = environment(**given)
    return subprocess.run(command(port), cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)


@contextmanager
def started(arguments: list[str], log: IO[str], **settings: Any) -> "Iterator[subprocess.Popen[str]]":
    """A process that is killed when the block ends."""
    given: dict[str, Any] = {"device": "cpu"} | settings
    variables = environment(**given)
    process = subprocess.Popen(arguments, cwd=ROOT, env=variables, stdout=log, stderr=log, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def serving(checkpoints: Path, log: IO[str], **changes: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that is ready, and its address; it is killed when the block ends."""
    settings = {"checkpoints": checkpoints, "max_rows": 4, "backend": "torch"} | changes
    with reserved_port() as port, started(command(port), log, **settings) as process:
        url = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            assert process.poll() is None, "the server ended"
            return status(f"{url}/readyz") == 200

        wait_until(ready)
        yield process, url


def status(url: str) -> int:
    """The status of a GET; 0 where nobody listens."""
    try:
        return httpx.get(url, timeout=60).status_code
    except httpx.TransportError:
        return 0


@contextmanager
def two_workers(checkpoints: Path, folder: Path, **changes: Any) -> Iterator["Processes"]:
    settings = {"models": {"dit": simulated(checkpoints / "dit", 10)}, "http_workers": 2} | changes
    with (folder / "log").open("w+") as log, serving(checkpoints, log, **settings) as (process, url):
        port = changes.get("metrics_port", url.rpartition(":")[2])
        processes = Processes(process, url, f"http://127.0.0.1:{port}/metrics", folder / "log")
        wait_until(lambda: "listening on" in processes.log)
        try:
            yield processes
        finally:
            for session in processes.sessions:
                session.close()
            leftover = [] if process.poll() is not None else processes.children()
            process.kill()
            for child in psutil.wait_procs(leftover, timeout=60)[1]:  # one that a test has stopped
                child.kill()


class Processes:
    """A running service."""

    def __init__(self, supervisor: "subprocess.Popen[str]", url: str, metrics: str, log: Path):
        self.supervisor, self.url, self._metrics, self._log = supervisor, url, metrics, log
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
        answer = httpx.get(self._metrics, headers={"X-API-Key": WATCHER}, timeout=60)
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
            stream = cast(Any, session)._transport._pool.connections[0]._connection._network_stream
            found.setdefault(self.worker_of(stream.get_extra_info("client_addr")[1]), session)
        return found

    def worker_of(self, port: int) -> int:
        """In which process a connection ends that a client keeps open at this port."""
        return next(worker.pid for worker in self.workers() if _holds(worker, port))


def _holds(worker: psutil.Process, port: int) -> bool:
    return any(other.raddr and other.raddr.port == port for other in worker.net_connections("tcp"))
