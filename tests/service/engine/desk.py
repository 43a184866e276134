"""An engine loop at work in a thread, and a desk that keeps every answer that comes over its socket."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from service.engine.core import EngineConfig, EngineCore
from service.engine.loop import EngineLoop
from service.engine.request import Request
from service.engine.swaps import Loader
from service.errors import Unavailable
from service.observe.scoreboard import EngineScoreboard, Layout, ModelStats, Scoreboard, StepStats
from service.wire.async_engine import Answer, AsyncEngine
from service.wire.clients import Clients
from service.wire.control import ATTACH, CONTROL, STOP
from service.wire.frames import FrameReader, frame
from service.wire.messages import (
    Abort,
    Cards,
    FromEngine,
    FromWorker,
    Generate,
    Refusal,
    Reply,
    SamplingParams,
)
from tests.service.engine.tiny import Turnstile, make_params, recording_runner, tiny_config
from tests.waiting import PATIENCE, wait_until


async def until(condition: Callable[[], bool]) -> None:
    """wait_until, with the event loop going on meanwhile."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


class Recorder(EngineScoreboard):
    """Keeps what an engine counts."""

    def __init__(self, board: Scoreboard):
        super().__init__(board)
        self.steps: list[StepStats] = []
        self.spared_evaluations: list[int] = []

    def step(self, stats: StepStats) -> None:
        super().step(stats)
        self.steps.append(stats)

    def spared(self, model: str, evaluations: int) -> None:
        super().spared(model, evaluations)
        self.spared_evaluations.append(evaluations)


class Rig:
    """An engine loop in a thread."""

    def __init__(self, core: EngineCore, load: Loader | None = None):
        self.core, self.board = core, Scoreboard(Layout(core.runners, ()), entries=2)
        self.recorder = Recorder(self.board)
        self._control, control = socket.socketpair()
        self.loop = EngineLoop(core, Clients(control), self.recorder, load)
        self.thread = threading.Thread(target=self.loop.run, daemon=True)

    @property
    def ready(self) -> bool:
        return self.board.state == "ready"

    @property
    def dead(self) -> bool:
        return self.board.state in ("stopped", "dead")

    def stats(self, model: str = "dit") -> ModelStats:
        """As the gauges show them."""
        places, names = self.board.layout.places, ("queue_depth", "running_slots", "backlog_seconds")
        depth, running, seconds = (self.board.total(places[name, model]) for name in names)
        return ModelStats(int(depth), int(running), seconds)

    def attach(self) -> socket.socket:
        """The client's end of a new connection."""
        mine, theirs = socket.socketpair()
        with suppress(OSError):  # the engine has died
            socket.send_fds(self._control, [CONTROL.pack(ATTACH, 0.0)], [theirs.fileno()])
        theirs.close()
        return mine

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncEngine]:
        """One of its own for each event loop, once it has heard of the models."""
        engine = AsyncEngine(self.attach(), self.board)
        await engine.connect()
        await until(lambda: engine.is_ready)
        try:
            yield engine
        finally:
            engine.close()
            await asyncio.sleep(0)  # the transport closes its socket with the next turn of the event loop

    def request_stop(self, drain_seconds: float) -> None:
        self._control.send(CONTROL.pack(STOP, drain_seconds))

    def stop(self, drain_seconds: float) -> None:
        if not self.dead:
            self.request_stop(drain_seconds)
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "the engine does not stop"

    def end(self) -> None:
        """Stop at once; no step is held back any longer."""
        for runner in self.core.runners.values():
            if isinstance(runner.model, Turnstile):
                runner.model.open()
        self.stop(0.0)

    def close(self) -> None:
        self._control.close()


class Desk:
    """Hands requests to an engine and keeps every answer."""

    def __init__(self, rig: Rig):
        self.rig = rig
        self.answers: dict[str, list[Answer]] = {}
        self.order: list[str] = []  # of the answers
        self.cards: list[Cards] = []
        self._lock, self._sending = threading.Lock(), threading.Lock()
        self._closed = False
        self._socket, self._reader = rig.attach(), FrameReader[FromEngine](FromEngine)  # pyright: ignore[reportArgumentType]
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._thread.join(PATIENCE)
        self._socket.close()

    def send(self, **changes: Any) -> str:
        return self.send_params(make_params(**changes))

    def send_params(self, params: SamplingParams) -> str:
        with self._lock:
            name = str(len(self.answers))
            self.answers[name] = []
        self._write(name, Generate(int(name), params))
        return name

    def abort(self, name: str) -> None:
        self._write(name, Abort(int(name)))

    def _write(self, name: str, message: FromWorker) -> None:
        with self._sending, suppress(OSError):  # closed: the reader sees it, too
            self._socket.sendall(frame([message]))
        with self._lock:
            if self._closed and not self.answers[name]:
                self.answers[name].append(Unavailable("closed"))

    def _read(self) -> None:
        try:
            while data := self._socket.recv(65536):
                for message in self._reader.feed(data):
                    self._take(message)
        except OSError:
            pass
        with self._lock:
            self._closed = True
            for answers in self.answers.values():
                if not answers:
                    answers.append(Unavailable("closed"))

    def _take(self, message: FromEngine) -> None:
        match message:
            case Cards():
                self.cards.append(message)
            case Reply(number, Refusal() as refusal):
                self._keep(str(number), refusal.error())
            case Reply(number, result):
                self._keep(str(number), result)  # pyright: ignore[reportArgumentType]

    def _keep(self, name: str, answer: Answer) -> None:
        with self._lock:
            self.order.append(name)
            self.answers[name].append(answer)

    def answer(self, name: str) -> Answer:
        wait_until(lambda: bool(self.answers[name]))
        (answer,) = self.answers[name]
        return answer


class Counting(EngineCore):
    """Keeps the names of the requests that were aborted."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.aborted: list[str] = []

    def abort(self, request_id: str) -> Request | None:
        if request := super().abort(request_id):
            self.aborted.append(request_id.partition("/")[2])
        return request


def make_core(model: Turnstile, core: type[EngineCore] = EngineCore, **bounds: Any) -> EngineCore:
    return core({"dit": recording_runner(model, tiny_config())}, EngineConfig(4, **bounds))


@contextmanager
def rigged(core: EngineCore, load: Loader | None = None) -> Iterator[Rig]:
    """A running engine that is warm, or dead."""
    rig = Rig(core, load)
    rig.thread.start()
    wait_until(lambda: rig.ready or rig.dead)
    try:
        yield rig
    finally:
        rig.end()
        rig.close()


@contextmanager
def running(core: EngineCore) -> Iterator[Desk]:
    with rigged(core) as rig:
        desk = Desk(rig)
        try:
            yield desk
        finally:  # once the engine has ended, which ends the desk's reader
            rig.end()
            desk.close()
