"""What the processes of the service have in common: how one is started, and how it ends with its supervisor."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from service.observe.board import Board, Layout
from service.settings import Settings, model_entries

# A fresh interpreter that finds the modules where this one found them.
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import {0}; {0}.main(json.loads(sys.argv[2]))"


@dataclass
class Child:
    """A process, as its supervisor sees it.

    Args:
        control: commands go there.
        lifeline: end of a pipe that nobody writes to; the child ends when it closes.
    """

    process: subprocess.Popen[bytes]
    control: socket.socket
    lifeline: int

    def kill(self) -> None:
        """Harmless when it has ended."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.control.close()
        os.close(self.lifeline)


def start(module: str, arguments: dict[str, int | list[int]], descriptors: Sequence[int]) -> Child:
    """Run `module.main(arguments)` in a process of its own.

    Args:
        arguments: what main gets besides the descriptors `control` and `lifeline`.
        descriptors: those that the arguments name.
    """
    control, theirs = socket.socketpair()
    lifeline, mine = os.pipe()
    given = arguments | {"control": theirs.fileno(), "lifeline": lifeline}
    command = [sys.executable, "-c", START.format(module), json.dumps(sys.path), json.dumps(given)]
    process = subprocess.Popen(command, pass_fds=[*descriptors, theirs.fileno(), lifeline])
    theirs.close()
    os.close(lifeline)
    return Child(process, control, mine)


def spare_collector() -> None:
    """Call when everything is loaded: what is there by now stays, and no collection need look at it again.

    Without it, a full collection stopped an engine with torch for 110 ms every few seconds.
    """
    gc.collect()
    gc.freeze()


def obey_supervisor(lifeline: int) -> None:
    """Leave the signals of a terminal or a process group to the supervisor, and end when it has ended."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), name="lifeline", daemon=True).start()


def _end_with(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)


def open_board(settings: Settings, rows: int, descriptor: int | None = None) -> Board:
    """The board of a service with these settings: the same layout in each of its processes."""
    return Board(Layout(model_entries(settings), settings.api_keys), rows, descriptor)
