"""The supervisor alone, with sockets in place of its children: what it does where the machine has no room."""

import errno
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from service import child, supervisor
from service.child import Child
from service.settings import ModelEntry, Settings
from service.supervisor import ENGINE_DIED, MANY_DEATHS, WORKERS_FAIL, Supervisor


class Process:
    """As subprocess.Popen; it has ended once it has a code."""

    returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> None:
        pass

    kill = wait


class Machine:
    """Where the children would run."""

    def __init__(self, stack: ExitStack):
        self._stack, self.is_full = stack, False
        self.processes: dict[str, Process] = {}  # by module
        self.controls: dict[str, socket.socket] = {}  # the children's ends

    def start(self, module: str, *_: Any) -> Child:
        if self.is_full:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        mine, theirs = (self._stack.enter_context(end) for end in socket.socketpair())
        self.processes[module], self.controls[module] = Process(), theirs
        process: Any = self.processes[module]
        return Child(process, mine, os.dup(theirs.fileno()))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with ExitStack() as stack:
        machine = Machine(stack)
        monkeypatch.setattr(child, "start", machine.start)
        monkeypatch.setattr(supervisor, "RETRY_SECONDS", 0)
        yield machine


@pytest.fixture
def supervised(machine: Machine, checkpoints: Path) -> Supervisor:
    """One worker, which is to be replaced."""
    entry = ModelEntry(checkpoint=checkpoints / "dit")
    found = Supervisor(Settings(models={"dit": entry}, http_workers=1), [], [])
    assert found._poll() is None
    machine.processes["service.web.worker"].returncode = -9
    return found


def test_a_worker_is_replaced_once_there_is_room(supervised: Supervisor, machine: Machine) -> None:
    machine.is_full, dead = True, machine.processes["service.web.worker"]
    assert supervised._poll() is None
    machine.is_full = False
    assert supervised._poll() is None
    assert machine.processes["service.web.worker"] is not dead


def test_the_next_start_is_not_tried_at_once(
    supervised: Supervisor, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RETRY_SECONDS", 1000)
    machine.is_full, dead = True, machine.processes["service.web.worker"]
    assert supervised._poll() is None
    machine.is_full = False
    assert supervised._poll() is None
    assert machine.processes["service.web.worker"] is dead


def test_a_machine_that_stays_full_ends_the_service(supervised: Supervisor, machine: Machine) -> None:
    machine.is_full = True
    *codes, last = (supervised._poll() for _ in range(MANY_DEATHS - 1))  # the first death was at its start, too
    assert (codes, last) == ([None] * (MANY_DEATHS - 2), WORKERS_FAIL)


def test_an_engine_that_dies_with_a_worker_gives_its_own_code(supervised: Supervisor, machine: Machine) -> None:
    machine.controls["service.engine_process"].close()
    assert supervised._poll() is None
    machine.processes["service.engine_process"].returncode = -9
    assert supervised._poll() == ENGINE_DIED


def test_a_start_that_fails_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", full)
    open_ones = set(Path("/dev/fd").iterdir())
    with pytest.raises(OSError, match="temporarily"):
        child.start("service.web.worker", {}, [])
    assert set(Path("/dev/fd").iterdir()) == open_ones
