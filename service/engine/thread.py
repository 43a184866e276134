"""The thread that owns the device, the schedulers and every request.

Commands come in by a queue, answers leave by callbacks; there is no lock and no shared dict. Whatever happens in
here, every request that came in is answered once.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from service.engine.core import EngineCore, ModelStats, StepStats
from service.engine.request import (
    DeadlinePassed,
    EngineError,
    EngineStopped,
    Preview,
    Request,
    RequestFailed,
    RequestOutput,
    RequestStatus,
)

logger = logging.getLogger(__name__)

IDLE_WAIT = 0.5  # seconds between heartbeats of an idle engine
COMMAND_SECONDS = 0.005  # between two steps, for requests that come and go
JOIN_SECONDS = 10.0  # for the step that is running when the engine is told to end

Answer = Preview | RequestOutput | EngineError  # any number of previews, then one of the others
Deliver = Callable[[Answer], None]  # called in the engine thread; must not block or raise


@dataclass(frozen=True, slots=True)
class Add:
    request: Request
    deliver: Deliver


@dataclass(frozen=True, slots=True)
class Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class Stop:
    drain_seconds: float  # running and queued work may finish for so long


class EngineThread:
    """Runs an EngineCore.

    Args:
        on_step: called after each step, in the engine thread.
        on_abort: called with an aborted request whose client has gone.
    """

    def __init__(
        self,
        core: EngineCore,
        on_step: Callable[[StepStats], None] = lambda stats: None,
        on_abort: Callable[[Request], None] = lambda request: None,
    ):
        self._core, self._on_step, self._on_abort = core, on_step, on_abort
        self._inbox: SimpleQueue[Add | Abort | Stop] = SimpleQueue()
        self._deliver: dict[str, Deliver] = {}  # open requests; touched by the engine thread only
        self._stop_at: float | None = None
        self.on_death: Callable[[], None] = lambda: None  # called in the engine thread, behind the last answer
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        # read by other threads, replaced whole by the engine thread
        self.ready = False
        self.dead = False
        self.died = False  # by itself, and not because it was told to
        self.heartbeat = time.monotonic()
        self.stats: dict[str, ModelStats] = {}

    def start(self) -> None:
        self._thread.start()

    def add(self, request: Request, deliver: Deliver) -> None:
        """Hand over a request; deliver gets its previews, then exactly one answer unless it is aborted first."""
        self._inbox.put(Add(request, deliver))
        if self.dead:  # it may never look into its inbox again
            self._refuse_inbox()

    def abort(self, request_id: str) -> None:
        """Forget a request; harmless when it has already ended."""
        self._inbox.put(Abort(request_id))

    def request_stop(self, drain_seconds: float) -> None:
        """Not ready from now on; finish what was accepted, for at most drain_seconds, then end the thread.

        May be called from a signal handler. A later call can only shorten the time.
        """
        self._inbox.put(Stop(drain_seconds))

    def join(self, timeout: float) -> None:
        """Wait for the end; a forward that hangs is left behind."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def stop(self, drain_seconds: float) -> None:
        """request_stop and join."""
        self.request_stop(drain_seconds)
        self.join(drain_seconds + JOIN_SECONDS)

    def _main(self) -> None:
        try:
            self._warm_up()
            while not self._finished():
                self._handle_commands()
                self._step()
                self.heartbeat = time.monotonic()
            reason = "the service is shutting down"
        except EngineStopped as stopped:
            reason = str(stopped)
        except BaseException as error:  # nothing may leave a client waiting
            logger.critical("the engine died", exc_info=True)
            reason, self.died = f"the engine died: {type(error).__name__}", True
        self.ready, self.dead = False, True
        self._refuse_inbox()
        for deliver in self._deliver.values():
            deliver(EngineStopped(reason))
        self._deliver.clear()
        if self.died:
            self.on_death()

    def _warm_up(self) -> None:
        for model in self._core.runners:
            self._core.warm_up(model, self._between_warm_ups)
            logger.info("model %s is warm: %d rows a step", model, self._core.shares[model].scheduler.max_rows)
        self.stats = self._core.stats()
        self.ready = True

    def _between_warm_ups(self) -> None:
        self.heartbeat = time.monotonic()
        if not self._inbox.empty():
            self._handle(self._inbox.get())
        if self._stop_at is not None:
            raise EngineStopped("stopped while warming up")

    def _finished(self) -> bool:
        if self._stop_at is None:
            return False
        return not self._core.has_work or time.monotonic() >= self._stop_at

    def _handle_commands(self) -> None:
        """Commands that are there, as far as the time for them goes; waits for one when there is no work.

        Whatever comes in, and however it is refused, the steps of those who are in go on.
        """
        wait, started = not self._core.has_work, time.monotonic()
        while wait or time.monotonic() - started < COMMAND_SECONDS:
            try:
                command = self._inbox.get(block=wait, timeout=IDLE_WAIT)
            except Empty:
                break
            if wait:
                wait, started = False, time.monotonic()
            self._handle(command)
        self.stats = self._core.stats()

    def _handle(self, command: Add | Abort | Stop) -> None:
        match command:
            case Add(request, deliver):
                self._add(request, deliver)
            case Abort(request_id):
                self._deliver.pop(request_id, None)
                request = self._core.abort(request_id)
                if request is not None:
                    self._on_abort(request)
            case Stop(drain_seconds):
                stop_at = time.monotonic() + drain_seconds
                self._stop_at = stop_at if self._stop_at is None else min(self._stop_at, stop_at)
                self.ready = False

    def _add(self, request: Request, deliver: Deliver) -> None:
        if not self.ready:
            warming = self._stop_at is None
            deliver(EngineStopped(f"the service is {'not ready yet' if warming else 'shutting down'}"))
            return
        self._deliver[request.request_id] = deliver  # before add: were it to raise, this one is answered, too
        try:
            self._core.add(request)
        except EngineError as error:
            self._deliver.pop(request.request_id)(error)

    def _step(self) -> None:
        progress = self._core.step()
        for request, preview in progress.previews:
            self._deliver[request.request_id](preview)
        for request in progress.ended:
            self._deliver.pop(request.request_id)(_answer(request))
        if progress.stats is not None:
            self._on_step(progress.stats)
        self.stats = self._core.stats()  # a request may have ended without a step

    def _refuse_inbox(self) -> None:
        while True:
            try:
                command = self._inbox.get_nowait()
            except Empty:
                return
            if isinstance(command, Add):
                command.deliver(EngineStopped("the engine has stopped"))


def _answer(request: Request) -> Answer:
    if request.status is RequestStatus.FAILED:
        return RequestFailed(request.error)
    if request.status is RequestStatus.EXPIRED:
        return DeadlinePassed("the deadline has passed")
    images = [request.images[index] for index in range(len(request.tasks))]
    request.images.clear()  # request and tasks refer to each other: pixels need not wait for the collector
    return RequestOutput(images, request.started - request.arrived, request.finished - request.started)
