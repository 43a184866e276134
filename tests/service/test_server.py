"""`python run.py serve` as a process: start, signals, exit codes, broken configuration."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
import torch

from models.dit_model import DIT
from service.server import ENGINE_DIED, connection_limit
from tests.checkpoints import CLASS_NAMES, TINY
from tests.service.conftest import wait_until

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(port: int) -> list[str]:
    return [sys.executable, "run.py", "serve", "--port", str(port)]


def environment(**settings: Any) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DIFFUSION_")}
    return kept | {"OMP_NUM_THREADS": "1"} | {f"DIFFUSION_{k.upper()}": str(v) for k, v in settings.items()}


@contextmanager
def serving(checkpoints: Path, log: IO[str], **changes: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = environment(checkpoints=checkpoints, device="cpu", max_rows=4, **changes)
    process = subprocess.Popen(command(port), cwd=ROOT, env=settings, stdout=log, stderr=log, text=True)

    def ready() -> bool:
        assert process.poll() is None, "the server ended"
        try:
            return httpx.get(f"{url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(ready, seconds=60)
        yield process, url
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_and_open_requests_are_answered(
    checkpoints: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with (tmp_path / "log").open("w+") as log, serving(checkpoints, log) as (process, url):
        assert httpx.post(f"{url}/generate?model=unet&class=cat").status_code == 200
        answers: list[int] = []
        query = {"model": "dit", "class": "cat", "steps": 250}
        client = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/generate", params=query, timeout=60).status_code)
        )
        client.start()
        wait_until(lambda: 'running_slots{model="dit"} 1.0' in httpx.get(f"{url}/metrics").text)
        process.send_signal(number)
        client.join(timeout=60)
        assert answers == [200]
        assert process.wait(timeout=30) == 0
        log.seek(0)
        assert "Traceback" not in log.read()


@pytest.mark.parametrize(("drain_seconds", "signals"), [(0.2, 1), (60, 2)], ids=["limit", "second signal"])
def test_what_the_drain_cuts_off_is_told_so(
    checkpoints: Path, tmp_path: Path, drain_seconds: float, signals: int
) -> None:
    with (tmp_path / "log").open("w+") as log, ThreadPoolExecutor(1) as pool:
        with serving(checkpoints, log, drain_seconds=drain_seconds) as (process, url):
            query = {"model": "unet", "class": "cat", "steps": 250, "n": 16}
            answer = pool.submit(httpx.post, f"{url}/generate", params=query, timeout=60)
            wait_until(lambda: 'running_slots{model="unet"} 0.0' not in httpx.get(f"{url}/metrics").text)
            for _ in range(signals):
                process.send_signal(signal.SIGTERM)
                time.sleep(0.1)  # two at once would be one
            assert answer.result().status_code == 503
            assert answer.result().headers["content-type"] == "application/problem+json"
            assert process.wait(timeout=30) == 0
        log.seek(0)
        assert "Traceback" not in log.read()


def test_a_signal_is_heard_while_the_imports_still_run(checkpoints: Path, tmp_path: Path) -> None:
    """As process 1 of a container it would be lost otherwise, until the container is killed."""
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(600)")  # found before the real one, and slower
    settings = environment(checkpoints=checkpoints, device="cpu") | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(command(free_port()), cwd=ROOT, env=settings, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: catches(process.pid, signal.SIGTERM))
        process.terminate()
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, b"")
    finally:
        process.kill()
        process.communicate()


def catches(pid: int, number: signal.Signals) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


def test_the_second_signal_waits_for_no_client(checkpoints: Path, tmp_path: Path) -> None:
    """One has sent half of its request, one does not read its answers: both are cut, the process ends."""
    with (tmp_path / "log").open("w+") as log, serving(checkpoints, log) as (process, url):
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address) as half, socket.socket() as deaf:
            half.sendall(b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{")
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(address)
            deaf.settimeout(1)
            with suppress(TimeoutError):
                deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 2000)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)  # two at once would be one
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=8) == 0  # body_seconds is 10, stream_seconds 120
        log.seek(0)
        assert "Traceback" not in log.read()


def test_a_taken_port_is_one_sentence(checkpoints: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = environment(checkpoints=checkpoints, device="cpu")
        ended = subprocess.run(command(port), cwd=ROOT, env=settings, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr == f"error: cannot listen on 127.0.0.1, port {port}: Address already in use\n"


def test_metrics_cannot_have_the_port_of_the_service(checkpoints: Path) -> None:
    port = free_port()
    settings = environment(checkpoints=checkpoints, device="cpu", metrics_port=port)
    ended = subprocess.run(command(port), cwd=ROOT, env=settings, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "DIFFUSION_METRICS_PORT" in ended.stderr


def test_connections_stay_within_the_open_files(checkpoints: Path, tmp_path: Path) -> None:
    """With 128 files, and no right to more, sixty-four connections are served and the next one is told why not."""
    settings = environment(checkpoints=checkpoints, device="cpu", max_rows=4)
    port = free_port()
    limited = ["prlimit", "--nofile=128:128", *command(port)]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(limited, cwd=ROOT, env=settings, stdout=log, stderr=log)
        try:
            wait_until(lambda: answers(port), seconds=60)
            with ExitStack() as stack:
                address = ("127.0.0.1", port)
                clients = [stack.enter_context(socket.create_connection(address)) for _ in range(100)]
                client = clients[-1]
                client.settimeout(30)
                client.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
                assert client.recv(4096).startswith(b"HTTP/1.1 503")
            wait_until(lambda: answers(port))
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        text = log.read()
    assert "64 connections at most" in text
    assert "Traceback" not in text


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
    except httpx.TransportError:
        return False


def test_without_a_limit_on_open_files_all_connections_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no module `resource`."""
    monkeypatch.setitem(sys.modules, "resource", None)
    assert connection_limit(5000) == 5000


def test_nothing_that_is_served_imports_what_only_unix_has() -> None:
    """Where no function asks for it: at import it would stop the service on Windows."""
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('resource', 'fcntl', 'pwd', 'grp', 'termios')))\n"
        "import service.server\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_a_port_that_the_system_chooses_is_told(checkpoints: Path, tmp_path: Path) -> None:
    settings = environment(checkpoints=checkpoints, device="cpu", max_rows=4, metrics_port=free_port())
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command(0), cwd=ROOT, env=settings, stderr=log, text=True)
        try:
            text = (tmp_path / "log").read_text
            wait_until(lambda: "listening on " in text() or process.poll() is not None, seconds=60)
            told = re.search(
                r"listening on (http://127.0.0.1:\d+), metrics on (http://127.0.0.1:\d+/metrics)\n", text()
            )
            assert told, text()
            assert httpx.get(f"{told[1]}/readyz").status_code == 200
            assert httpx.get(told[2]).status_code == 200
        finally:
            process.kill()
            process.wait()


def test_broken_configuration_is_one_sentence(tmp_path: Path) -> None:
    cases = {
        "no checkpoint": environment(checkpoints=tmp_path),
        "DIFFUSION_MAX_ROWS": environment(max_rows=0),
        "unknown setting DIFFUSION_SPEED": environment(speed=1),
    }
    for reason, settings in cases.items():
        run = [*command(free_port())]
        ended = subprocess.run(run, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 2
        assert ended.stderr.startswith("error: ")
        assert reason in ended.stderr
        assert ended.stderr.count("\n") == 1


class Mortal(DIT):
    """Loses its device when class 1 is asked for."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if (y == 1).any():
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return super().forward(x, t, y)


def test_a_dead_engine_tells_its_clients_and_ends_the_process(tmp_path: Path) -> None:
    config = {"arguments": TINY["dit"] | {"num_classes": 3}, "class_names": CLASS_NAMES}
    models = json.dumps({"dit": {"architecture": f"{__name__}:Mortal", "config": config}})
    with (tmp_path / "log").open("w+") as log, ThreadPoolExecutor(2) as pool:
        with serving(tmp_path, log, models=models) as (process, url):
            query = {"model": "dit", "class": 0, "steps": 250, "guidance": 1}
            open_one = pool.submit(httpx.post, f"{url}/generate", params=query, timeout=60)
            wait_until(lambda: 'running_slots{model="dit"} 0.0' not in httpx.get(f"{url}/metrics").text)
            fatal = pool.submit(httpx.post, f"{url}/generate", params=query | {"class": 1}, timeout=60)
            for answer in (open_one.result(), fatal.result()):
                assert answer.status_code == 503
                assert "the engine died: ModelFailed" in answer.json()["detail"]
            assert process.wait(timeout=30) == ENGINE_DIED
        log.seek(0)
        assert "the engine died" in log.read()
