"""What holds while the processes still import: how they end, hear signals and hold their port."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.client import reserved_port
from tests.service.process import command, failed_start, started, status
from tests.waiting import wait_until

# An interpreter of a child runs this before anything of the service: a signal that it heard would end it.
SIGNALS = "import os, signal, sys\nif '-c' in sys.orig_argv:\n"
SIGNALS += "    [os.kill(os.getpid(), number) for number in (signal.SIGINT, signal.SIGTERM)]\n"
ENDLESS = "import os, pathlib, time\npathlib.Path({folder!r}, f'at-{{os.getpid()}}').touch()\ntime.sleep(3600)\n"
FAILS_ONCE = """
import json, pathlib, sys, time
entry = json.loads(sys.argv[-1])["entry"]
first = pathlib.Path({folder!r}, f"first-{{entry}}")
if not first.exists():
    first.touch()
    raise SystemExit(7)
pathlib.Path({folder!r}, f"second-{{entry}}").touch()
time.sleep(3600)
"""


@contextmanager
def starting(
    checkpoints: Path, folder: Path, port: int, uvicorn: str | None = ENDLESS, **settings: Any
) -> Iterator["subprocess.Popen[str]"]:
    """A service of which only the supervisor ends its imports: torch and uvicorn are not the real ones.

    Args:
        uvicorn: None is the real one.
    """
    modules = {"sitecustomize": SIGNALS, "torch": ENDLESS} | ({"uvicorn": uvicorn} if uvicorn else {})
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text.format(folder=str(folder)))
    children: list[psutil.Process] = []
    settings |= {"checkpoints": checkpoints, "modules": folder}
    try:
        with (folder / "log").open("w") as log, started(command(port), log, **settings) as process:
            try:
                yield process
            finally:
                children = psutil.Process(process.pid).children() if process.poll() is None else []
    finally:
        for child in psutil.wait_procs(children, timeout=60)[1]:
            child.kill()


def wait_for(process: "subprocess.Popen[str]", folder: Path, pattern: str, count: int) -> None:
    def there() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        return len(list(folder.glob(pattern))) == count

    wait_until(there)


def test_children_obey_their_supervisor_before_they_have_imported_anything(
    checkpoints: Path, tmp_path: Path
) -> None:
    with starting(checkpoints, tmp_path, 0, http_workers=2) as process:
        wait_for(process, tmp_path, "at-*", 3)
        children = psutil.Process(process.pid).children()
        process.kill()
        ended, alive = psutil.wait_procs(children, timeout=60)  # their imports take an hour
        assert (len(ended), alive) == (3, [])
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize("what", ["port", "metrics_port"])
def test_of_two_services_that_start_the_second_fails(checkpoints: Path, tmp_path: Path, what: str) -> None:
    with (
        reserved_port() as first,
        reserved_port() as metrics,
        reserved_port() as second,
        starting(checkpoints, tmp_path, first, metrics_port=metrics) as process,
    ):
        wait_for(process, tmp_path, "at-*", 2)
        same = {} if what == "port" else {"metrics_port": metrics}
        taken, port = (first, first) if what == "port" else (metrics, second)
        ended = failed_start(port, checkpoints=checkpoints, **same)
    assert ended.returncode == 2
    assert ended.stderr == f"error: cannot listen on 127.0.0.1, port {taken}: Address already in use\n"


def test_five_workers_may_fail_once_each(checkpoints: Path, tmp_path: Path) -> None:
    """Only a worker that fails again and again is hopeless."""
    with starting(checkpoints, tmp_path, 0, FAILS_ONCE, http_workers=5) as process:
        wait_for(process, tmp_path, "second-*", 5)
        assert (tmp_path / "log").read_text().count("has ended with code 7: starting another one") == 5


def test_a_slow_start_never_turns_liveness_red(checkpoints: Path, tmp_path: Path) -> None:
    with reserved_port() as port:
        url = f"http://127.0.0.1:{port}"
        with starting(checkpoints, tmp_path, port, None, heartbeat_seconds=1e-9) as process:
            wait_for(process, tmp_path, "at-*", 1)
            assert (status(f"{url}/livez"), status(f"{url}/readyz")) == (200, 503)
