"""Starts the engine and the HTTP workers, watches them, passes signals on, and ends with a code that says why.

It imports no torch. Sockets go to the children by descriptor, so nothing here needs a folder that can be written.
"""

import logging
import os
import select
import signal
import socket
import sys
import time
from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType

from service import child
from service.cgroup import cores
from service.child import Arguments, Child, open_board
from service.listening import bind, urls
from service.observe import logs
from service.observe.scoreboard import HEARTBEAT
from service.settings import Settings, SettingsError, load_settings, model_entries
from service.wire.control import ANSWER_SECONDS, ATTACH, BAD_INPUT, CONTROL, ENGINE_DIED, STARTED, STOP

logger = logging.getLogger(__name__)

WORKERS_FAIL = 4  # exit code; behind ENGINE_DIED and this one a new start may help
POLL_SECONDS = 0.1  # between two polls of the children; a signal is acted on within this time
MANY_DEATHS, DEATHS_SECONDS = 5, 30.0  # a worker that ends at its start so often within so long is hopeless
RETRY_SECONDS = 1.0  # after which the next start is tried where the machine had no room for a process
SILENT_POLLS = 50  # in which a worker that beats every second has not: it is stuck


@dataclass
class Pulse:
    """A worker's signs of life, counted in polls of its supervisor: a pause of the whole machine is one poll."""

    beat: float = 0.0
    polls: int = 0  # since it changed

    def stops(self, beat: float) -> bool:
        """True once it has not changed for SILENT_POLLS."""
        self.beat, self.polls = beat, self.polls + 1 if beat == self.beat else 0
        return self.polls == SILENT_POLLS


class Supervisor:
    """One engine process and some workers.

    Args:
        listeners, side_listeners: bound sockets of the service, and of /metrics if it has a port of its own.
    """

    def __init__(self, settings: Settings, listeners: list[socket.socket], side_listeners: list[socket.socket]):
        self._settings, self._listeners, self._side = settings, listeners, side_listeners
        self._num_workers = num_workers(settings)
        self._models = list(model_entries(settings))
        self._board = open_board(self._models, settings, entries=1 + self._num_workers)
        self._workers: dict[int, Child] = {}  # by their entry of the scoreboard
        self._starting: dict[socket.socket, int] = {}  # entries of silent workers, by their control
        self._started: dict[int, Pulse] = {}  # by entries of workers that accept connections
        self._failed_starts = defaultdict[int, deque[float]](lambda: deque(maxlen=MANY_DEATHS))  # times, by entry
        self._no_start_before = 0.0  # on the monotonic clock
        self._signals = 0
        self._announced = False
        self._engine = self._start_engine()

    def run(self) -> int:
        """Until a signal or a failure ends it; returns the exit code."""
        try:
            while (code := self._poll()) is None:
                self._wait()
            return code
        finally:
            for process in (self._engine, *self._workers.values()):
                process.kill()

    def signal(self, *_: int | FrameType | None) -> None:
        """The first drains, the second refuses what is left, the third ends everything at once."""
        self._signals += 1

    def _start_engine(self) -> Child:
        board = self._board.descriptor
        given: Arguments = {"board": board, "entries": self._board.num_entries, "models": self._models}
        return child.start("service.engine_process", given, [board])

    def _start_worker(self, entry: int) -> bool:
        """False when it has failed to start too often."""
        try:
            mine, theirs = socket.socketpair()
            with mine, theirs:
                socket.send_fds(self._engine.control, [CONTROL.pack(ATTACH, entry)], [theirs.fileno()])
                worker = self._workers[entry] = self._start_process(entry, mine.fileno())
        except OSError as error:  # no room for a process, or the engine has just died
            logger.error("worker %d cannot be started: %s", entry, error)
            self._no_start_before = time.monotonic() + RETRY_SECONDS
            return not self._fails_again(entry)
        self._starting[worker.control] = entry
        return True

    def _start_process(self, entry: int, engine: int) -> Child:
        listeners = [listener.fileno() for listener in self._listeners]
        side, board = [listener.fileno() for listener in self._side], self._board.descriptor
        given: Arguments = {
            "entry": entry, "board": board, "entries": self._board.num_entries, "models": self._models,
            "engine": engine, "listeners": listeners, "side": side,
        }  # fmt: skip
        return child.start("service.web.worker", given, [engine, board, *listeners, *side])

    def _wait(self) -> None:
        """For the first word of a worker, but no longer than POLL_SECONDS. Only waits of that length are polls."""
        words = select.select(list(self._starting), [], [], POLL_SECONDS)[0]
        for control in words:
            entry = self._starting.pop(control)
            if control.recv(1) == STARTED:  # else it has closed its end, which stays readable until it is reaped
                self._started[entry] = Pulse()
        if not words:
            self._kill_the_stuck()

    def _poll(self) -> int | None:
        """Look at signals, engine and workers; returns an exit code when the service is to end."""
        if self._signals:
            return self._drain()
        if (code := self._engine.process.poll()) is not None:
            return self._end_without_engine(code)
        for entry, worker in list(self._workers.items()):
            if worker.process.poll() is not None and not self._remove(entry, worker):
                return WORKERS_FAIL
        for entry in range(1, 1 + self._num_workers):
            if entry in self._workers or time.monotonic() < self._no_start_before:
                continue
            if not self._start_worker(entry):
                return WORKERS_FAIL
        if not self._announced and self._board.state == "ready" and len(self._started) == self._num_workers:
            self._announced = True
            self._announce()
        return None

    def _kill_the_stuck(self) -> None:
        beats = self._board.column(HEARTBEAT)
        for entry, pulse in self._started.items():
            if pulse.stops(beats[entry]):
                logger.error("worker %d has given no sign of life for %g s", entry, SILENT_POLLS * POLL_SECONDS)
                self._workers[entry].process.kill()

    def _remove(self, entry: int, dead: Child) -> bool:
        """Make room for another worker; False when it has died at its start too often."""
        del self._workers[entry]
        self._starting.pop(dead.control, None)
        dead.close()
        self._board.release(entry)
        hopeless = self._started.pop(entry, None) is None and self._fails_again(entry)
        then = f"at its start {MANY_DEATHS} times in {DEATHS_SECONDS:g} s" if hopeless else "starting another one"
        logger.error("worker %d has ended with code %d: %s", entry, dead.process.returncode, then)
        return not hopeless

    def _fails_again(self, entry: int) -> bool:
        times = self._failed_starts[entry]
        times.append(time.monotonic())
        return len(times) == MANY_DEATHS and times[-1] - times[0] < DEATHS_SECONDS

    def _end_without_engine(self, code: int) -> int:
        """The workers refuse every open request by themselves; this waits until these answers have left."""
        if code == BAD_INPUT:  # it has said why
            return BAD_INPUT
        logger.critical("the engine's process has ended with code %d", code)
        self._pass_on(1)
        until = time.monotonic() + ANSWER_SECONDS
        while self._alive() and time.monotonic() < until:
            time.sleep(POLL_SECONDS / 10)
        return ENGINE_DIED

    def _drain(self) -> int:
        """Pass the signals on until the workers have ended."""
        passed, starting = 0, self._board.state == "starting"
        for listener in (*self._listeners, *self._side):
            listener.close()
        if starting:  # nothing has been accepted
            self._engine.kill()
        else:
            logger.info("stopping: accepted requests may take %g s more", self._settings.drain_seconds)
        until = time.monotonic() + self._settings.drain_seconds + 2 * ANSWER_SECONDS
        while self._alive() and time.monotonic() < until and self._signals < 3:
            if self._signals > passed:
                passed = self._signals
                self._stop_engine(self._settings.drain_seconds if passed == 1 else 0.0)
                self._pass_on(passed)
            time.sleep(POLL_SECONDS / 10)
        if starting or (self._board.state != "dead" and self._engine.process.poll() in (None, 0)):
            return 0
        logger.critical("the engine has died before its work was done")
        return ENGINE_DIED

    def _alive(self) -> bool:
        return any(worker.process.poll() is None for worker in self._workers.values())

    def _stop_engine(self, drain_seconds: float) -> None:
        with suppress(OSError):  # it has gone
            self._engine.control.send(CONTROL.pack(STOP, drain_seconds))

    def _pass_on(self, count: int) -> None:
        for worker in self._workers.values():
            with suppress(OSError):  # it has gone
                worker.control.send(bytes([count]))

    def _announce(self) -> None:
        own, metrics = urls(self._listeners), [f"{url}/metrics" for url in urls(self._side)]
        text = "listening on %s" + (", metrics on %s" if metrics else "")
        places = [" and ".join(found) for found in (own, metrics) if found]
        logger.info(text, *places, extra={"fields": {"urls": own, "metrics_urls": metrics}})


def num_workers(settings: Settings) -> int:
    """On a CPU one, for the engine needs the cores; beside a GPU one for every two cores, eight at most."""
    if settings.http_workers is not None:
        return settings.http_workers
    has_gpu = settings.device == "cuda" or (settings.device == "auto" and os.path.exists("/dev/nvidiactl"))
    return max(1, min(8, cores() // 2)) if has_gpu else 1


def serve(host: str, port: int) -> int:
    """Serve until SIGTERM or SIGINT; what was accepted is finished first, within DIFFUSION_DRAIN_SECONDS.

    Returns the exit code: 0 after a signal, BAD_INPUT for a checkpoint that cannot be served, ENGINE_DIED after
    every open request was told, or WORKERS_FAIL.

    Raises:
        SettingsError, OSError: nothing has been started then.
    """
    if sys.platform == "win32":
        raise SettingsError("the service needs Linux or macOS; on Windows, run it in WSL")
    settings = load_settings()
    if settings.metrics_port == port:
        raise SettingsError(f"setting DIFFUSION_METRICS_PORT: {port} is the port of the service itself")
    model_entries(settings)
    logs.configure(settings.log_level, settings.log_format, "supervisor")
    listeners = bind(host, port)
    side_listeners = bind(host, settings.metrics_port) if settings.metrics_port else []
    supervisor = Supervisor(settings, listeners, side_listeners)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.signal)
    return supervisor.run()
