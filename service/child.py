"""What the processes of the service have in common: how one is started, and how it ends with its supervisor."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from service.observe.scoreboard import Layout, Scoreboard
from service.settings import Settings

# A fresh interpreter that finds the modules where this one found them. It watches the lifeline before it imports
# them, for that takes seconds. After a parallel loop torch's threads spin for milliseconds, for the next one may be
# near. Meanwhile they keep a core from OpenVINO: a forward of the shipped DiT took 6.0 ms on two cores and not 4.1.
# 10,000 turns are enough, and serve torch's own networks as well.
START = """
import json, os, sys, threading
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
sys.path[:], given = json.loads(sys.argv[1]), json.loads(sys.argv[2])
threading.Thread(target=lambda: os.read(given["lifeline"], 1) or os._exit(1), name="lifeline", daemon=True).start()
import {0}
{0}.main(given)
"""
TERMINAL = (signal.SIGINT, signal.SIGTERM)  # a terminal or a process group sends them to everybody


Arguments = Mapping[str, int | list[int] | list[str]]


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


def start(module: str, arguments: Arguments, descriptors: Sequence[int]) -> Child:
    """Run `module.main(arguments)` in a process of its own, which never hears the signals of a terminal.

    Args:
        arguments: what main gets besides the descriptors `control` and `lifeline`.
        descriptors: those that the arguments name.
    """
    control, theirs = socket.socketpair()
    lifeline, mine = os.pipe()
    given = {**arguments, "control": theirs.fileno(), "lifeline": lifeline}
    command = [sys.executable, "-c", START.format(module), json.dumps(sys.path), json.dumps(given)]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL)  # inherited, so it holds from the first moment on
    try:
        process = subprocess.Popen(command, pass_fds=[*descriptors, theirs.fileno(), lifeline])
    except OSError:
        control.close()
        os.close(mine)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        os.close(lifeline)
    return Child(process, control, mine)


def freeze_heap() -> None:
    """Call when everything is loaded: later garbage collections then skip the objects that exist by now.

    Without it, a full collection stopped an engine with torch for 110 ms every few seconds.
    """
    gc.collect()
    gc.freeze()


def open_board(
    models: Iterable[str], settings: Settings, entries: int, descriptor: int | None = None
) -> Scoreboard:
    """The board of a service with these settings: the same layout in each of its processes.

    Args:
        models: as they were when the supervisor started. Later the folder of checkpoints may hold others.
    """
    return Scoreboard(Layout(models, settings.api_keys), entries, descriptor)
