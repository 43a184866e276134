"""`python run.py serve` as a process: start, signals, exit codes, broken configuration."""

import re
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.client import reserved_port
from service.supervisor import ENGINE_DIED
from service.web.worker import connection_limit
from tests.service.networks import Gated, Lost, entry, simulated
from tests.service.process import ROOT, command, failed_start, run_program, serving, started, status
from tests.service.sockets import connect, head
from tests.waiting import wait_until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_and_open_requests_are_answered(
    checkpoints: Path, tmp_path: Path, number: signal.Signals
) -> None:
    models = {"dit": entry(Gated, folder=str(tmp_path))}
    with (tmp_path / "log").open("w+") as log, ThreadPoolExecutor(1) as pool:
        with serving(checkpoints, log, models=models) as (process, url):
            query = {"model": "dit", "class": "cat"}
            assert httpx.post(f"{url}/generate", params=query, timeout=60).status_code == 200
            (tmp_path / "closed").touch()
            answer = pool.submit(httpx.post, f"{url}/generate", params=query, timeout=60)
            wait_until((tmp_path / "waits").exists)
            process.send_signal(number)
            wait_until(lambda: status(f"{url}/livez") == 0)
            (tmp_path / "closed").unlink()
            assert answer.result().status_code == 200
            assert process.wait(timeout=60) == 0
        log.seek(0)
        assert "Traceback" not in log.read()


def test_the_limit_of_a_drain_refuses_what_is_open(checkpoints: Path, tmp_path: Path) -> None:
    models = {"unet": simulated(checkpoints / "unet", 20)}
    with (tmp_path / "log").open("w+") as log, ThreadPoolExecutor(1) as pool:
        with serving(checkpoints, log, models=models, drain_seconds=0.2) as (process, url):
            query = {"model": "unet", "class": "cat", "steps": 250, "n": 16}
            answer = pool.submit(httpx.post, f"{url}/generate", params=query, timeout=60)
            wait_until(lambda: 'running_slots{model="unet"} 0.0' not in httpx.get(f"{url}/metrics").text)
            process.send_signal(signal.SIGTERM)
            assert answer.result().status_code == 503
            assert answer.result().headers["content-type"] == "application/problem+json"
            assert process.wait(timeout=60) == 0
        log.seek(0)
        assert "Traceback" not in log.read()


def test_a_signal_is_heard_while_the_imports_still_run(checkpoints: Path, tmp_path: Path) -> None:
    """As process 1 of a container it would be lost otherwise, until the container is killed."""
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(600)")  # found before the real one, and slower
    with (tmp_path / "log").open("w+") as log:
        with started(command(0), log, checkpoints=checkpoints, modules=tmp_path) as process:
            wait_until(lambda: catches(process.pid, signal.SIGTERM))
            process.terminate()
            assert process.wait(timeout=60) == 0
        log.seek(0)
        assert log.read() == ""


def catches(pid: int, number: signal.Signals) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


def test_the_second_signal_waits_for_no_client(checkpoints: Path, tmp_path: Path) -> None:
    """One has sent half of its request, one does not read its answers: both are cut, the process ends."""
    limits = {"body_seconds": 600, "stream_seconds": 600}
    with (tmp_path / "log").open("w+") as log, serving(checkpoints, log, **limits) as (process, url):
        with connect(url) as half, socket.socket() as deaf:
            half.sendall(head("POST", "/generate", "Content-Length: 50") + b"{")
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(half.getpeername())
            deaf.settimeout(1)
            with suppress(TimeoutError):
                deaf.sendall(head("GET", "/openapi.json") * 2000)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: status(f"{url}/livez") == 0)  # two signals at once would be one
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=120) == 0
        log.seek(0)
        assert "Traceback" not in log.read()


@pytest.mark.parametrize("which", ["port", "metrics_port"])
def test_a_taken_port_is_one_sentence(checkpoints: Path, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = failed_start(checkpoints=checkpoints, **{which: port})
    assert ended.returncode == 2
    assert ended.stderr == f"error: cannot listen on 127.0.0.1, port {port}: Address already in use\n"


def test_metrics_cannot_have_the_port_of_the_service(checkpoints: Path) -> None:
    ended = failed_start(12345, checkpoints=checkpoints, metrics_port=12345)
    assert ended.returncode == 2
    assert "DIFFUSION_METRICS_PORT" in ended.stderr


def test_connections_stay_within_the_open_files(checkpoints: Path, tmp_path: Path) -> None:
    """With 128 files, and no right to more, sixty-four connections are served and the next one is told why not."""
    with (tmp_path / "log").open("w+") as log, reserved_port() as port:
        limited, url = ["prlimit", "--nofile=128:128", *command(port)], f"http://127.0.0.1:{port}"
        with started(limited, log, checkpoints=checkpoints, max_rows=4), ExitStack() as stack:
            wait_until(lambda: status(f"{url}/livez") == 200)
            clients = [stack.enter_context(connect(url)) for _ in range(100)]
            clients[-1].sendall(head("GET", "/livez"))
            assert clients[-1].recv(4096).startswith(b"HTTP/1.1 503")
            stack.close()
            wait_until(lambda: status(f"{url}/livez") == 200)
        log.seek(0)
        text = log.read()
    assert "64 connections at most" in text
    assert "Traceback" not in text


def test_without_a_limit_on_open_files_all_connections_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no module `resource`."""
    monkeypatch.setitem(sys.modules, "resource", None)
    assert connection_limit(5000) == 5000


def test_nothing_that_is_served_imports_what_only_unix_has() -> None:
    """Where no function asks for it: at import it would stop the service on Windows."""
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('resource', 'fcntl', 'pwd', 'grp', 'termios')))\n"
        "import service.supervisor, service.web.worker, service.engine_process\n"
    )
    ended = run_program(code)
    assert ended.returncode == 0, ended.stderr


def test_windows_is_refused_in_one_sentence() -> None:
    code = "import sys, run, service.supervisor; sys.platform = 'win32'; sys.exit(run.main(['serve']))"
    ended = run_program(code)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: the service needs Linux or macOS; on Windows, run it in WSL\n"


def test_a_port_that_the_system_chooses_is_told(checkpoints: Path, tmp_path: Path) -> None:
    said = r"listening on (http://127.0.0.1:\d+), metrics on (http://127.0.0.1:\d+/metrics)\n"
    with (
        (tmp_path / "log").open("w") as log,
        reserved_port() as metrics_port,
        started(command(0), log, checkpoints=checkpoints, max_rows=4, metrics_port=metrics_port) as process,
    ):
        text = (tmp_path / "log").read_text
        wait_until(lambda: "listening on " in text() or process.poll() is not None)
        told = re.search(said, text())
        assert told, text()
        assert httpx.get(f"{told[1]}/readyz").status_code == 200
        assert httpx.get(told[2]).status_code == 200


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"checkpoints": ROOT / "tests"}, "no checkpoint"),
        ({"max_rows": 0}, "DIFFUSION_MAX_ROWS"),
        ({"speed": 1}, "unknown setting DIFFUSION_SPEED"),
    ],
    ids=["no checkpoint", "bad value", "unknown setting"],
)
def test_broken_configuration_is_one_sentence(settings: dict[str, Any], reason: str) -> None:
    ended = failed_start(**settings)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert reason in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_dead_engine_tells_its_clients_and_ends_the_process(tmp_path: Path) -> None:
    models = {"dit": entry(Lost)}
    with (tmp_path / "log").open("w+") as log, ThreadPoolExecutor(2) as pool:
        with serving(tmp_path, log, models=models) as (process, url):
            query = {"model": "dit", "class": 0, "steps": 250, "guidance": 1}
            open_one = pool.submit(httpx.post, f"{url}/generate", params=query, timeout=60)
            wait_until(lambda: 'running_slots{model="dit"} 0.0' not in httpx.get(f"{url}/metrics").text)
            fatal = pool.submit(httpx.post, f"{url}/generate", params=query | {"class": 1}, timeout=60)
            for answer in (open_one.result(), fatal.result()):
                assert answer.status_code == 503
                assert "the engine died: ModelFailed" in answer.json()["detail"]
            assert process.wait(timeout=60) == ENGINE_DIED
        log.seek(0)
        assert "the engine died" in log.read()
