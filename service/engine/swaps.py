"""A model gets other weights while it serves.

A thread reads and checks them. The engine's own thread then prepares the new runner between its steps, a little at
a time, and switches between two of them. Requests that were admitted before keep the old runner until
they end.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from models.checkpoint import CheckpointError
from service.engine.core import EngineCore
from service.engine.runner import ModelRunner, OutOfMemory, device_is_lost
from service.engine.takeovers import Takeovers
from service.engine.versions import is_leaving, leave, switch
from service.errors import InvalidRequest, ServiceError, SwapUnderWay, Unavailable
from service.observe.scoreboard import EngineScoreboard
from service.wire.clients import Client
from service.wire.messages import Reply, Swap, Swapped

logger = logging.getLogger(__name__)

# After this time the reading thread hands the interpreter to the steps, which Python's own 5 ms would hold up.
SWITCH_SECONDS = 0.0005
PAUSES = 4  # pause between two parts of the preparation, as a multiple of what the first of them took
REHEARSAL_ROWS = 2  # a guided image

# A model, a folder and the model's runner -> a runner of the weights in the folder.
Loader = Callable[[str, str, ModelRunner], ModelRunner]


@dataclass
class _Swap:
    """One that is under way."""

    client: Client  # that asked for it
    number: int
    model: str
    folder: str
    reader: threading.Thread | None = None
    read: ModelRunner | ServiceError | None = None  # what the reader has made
    parts: Iterator[None] | None = None  # of the preparation
    next_part: float = 0.0  # not before, on the monotonic clock
    switched: bool = False
    unaware: set[Client] = field(default_factory=set)  # workers that may still ask for the version before


class Swaps:
    """At most one swap at a time, so that no more than two copies of one model are in memory.

    Args:
        load: makes the runner of a checkpoint; None refuses every swap.
        clients: those that are attached.
        tell_cards: tells them of a new version.
    """

    def __init__(
        self,
        core: EngineCore,
        board: EngineScoreboard,
        load: Loader | None,
        clients: Callable[[], list[Client]],
        tell_cards: Callable[[], None],
    ):
        self._core, self._board, self._load = core, board, load
        self._clients, self._tell_cards = clients, tell_cards
        self._swap: _Swap | None = None
        self._takeovers = Takeovers(core)

    @property
    def is_busy(self) -> bool:
        """Whether advance has something to do, however idle the device is."""
        return self._swap is not None or bool(self._leaving) or self._takeovers.is_busy

    @property
    def _leaving(self) -> list[str]:
        """Models whose runner before still has requests."""
        return [model for model in self._core.models if is_leaving(self._core, model)]

    def begin(self, client: Client, message: Swap) -> None:
        """Its reply comes once the new weights serve, or when they will not."""
        swap = _Swap(client, message.number, message.model, message.folder)
        if self._load is None:
            self._refuse(swap, Unavailable("this engine has no checkpoints to swap to"))
        elif self._swap is not None:
            text = f"model {self._swap.model} is being swapped: wait for its answer"
            self._refuse(swap, SwapUnderWay(text))
        else:
            self._swap = swap

    def seen(self, client: Client) -> None:
        """It knows of the new version, or has gone."""
        if self._swap is not None:
            self._swap.unaware.discard(client)

    def end(self, reason: str) -> None:
        """Refuse the swap that is under way; what a thread still reads or makes is thrown away."""
        self._takeovers.end()
        if self._swap is not None:
            self._refuse(self._swap, Unavailable.because(reason))
            self._swap = None

    def _refuse(self, swap: _Swap, error: ServiceError) -> None:
        failed = isinstance(error, InvalidRequest)
        logger.warning("model %s is not swapped: %s", swap.model, error.detail)
        self._board.swapped(swap.model, "failed" if failed else "refused")
        swap.client.refuse(swap.number, error)

    def advance(self) -> None:
        """Call between two steps."""
        if (swap := self._swap) is not None:
            try:
                self._go_on(swap)
            except ServiceError as error:
                self._refuse(swap, error)
                self._swap = None
        else:
            self._takeovers.advance()
            self._tell_cards()
        self._let_go()

    def _let_go(self) -> None:
        """Drop the runner before, once no worker asks for its version and no request runs on it."""
        for model in self._leaving:
            if (self._swap is None or not self._swap.unaware) and leave(self._core, model):
                logger.info("model %s: the runner before has left", model)

    def _go_on(self, swap: _Swap) -> None:
        """The next piece of work, if its time has come.

        Raises:
            ServiceError: why the model keeps its weights.
        """
        if swap.switched:
            self._answer(swap)
        elif swap.reader is None:
            if self._takeovers.pause() and not self._leaving:  # else there would be three copies
                self._start_reader(swap)
        elif swap.parts is not None:
            self._prepare(swap, swap.parts)
        elif not swap.reader.is_alive():
            swap.parts = self._preparation(swap)

    def _start_reader(self, swap: _Swap) -> None:
        """The thread is no daemon: torch aborts the process if it ends while a daemon thread is inside."""
        load, core, runner = self._load, self._core, self._core.runners[swap.model]
        assert load is not None  # begin has seen to it

        def read() -> None:
            # Its priority is not lower: if it waited for a core while it holds the GIL, the steps would stop.
            before, threads = sys.getswitchinterval(), torch.get_num_threads()
            sys.setswitchinterval(SWITCH_SECONDS)
            torch.set_num_threads(1)  # in this thread; two wait for each other, and took six times the CPU
            try:
                read = load(swap.model, swap.folder, runner)
                torch.set_num_threads(threads)
                if read.backend != runner.backend:  # the old measurements do not hold for it
                    core.measure(read)
                swap.read = read
            except Exception as error:
                swap.read = _as_answer(swap.model, error)
            finally:
                torch.set_num_threads(threads)  # the number with which later threads begin
                sys.setswitchinterval(before)

        swap.reader = threading.Thread(target=read, name="swap")
        swap.reader.start()

    def _preparation(self, swap: _Swap) -> Iterator[None]:
        """In parts, each of which is short."""
        runner = swap.read
        assert runner is not None  # the reader has ended
        if isinstance(runner, ServiceError):
            raise runner
        # no step has more rows: the cap is fixed, and deterministic steps have their own number
        before, cap = self._core.runners[swap.model], self._core.shares[swap.model].scheduler.max_rows
        most = before.padded(max(cap, runner.fixed_rows))
        for rows in sorted((rows for rows in runner.step_seconds if rows <= most), reverse=True):
            runner.prepare(rows)
            yield
        failed = runner.execute(runner.rehearsal(REHEARSAL_ROWS)).failed
        if failed:
            raise CheckpointError(next(iter(failed.values())))
        yield
        self._switch(swap, runner)

    def _prepare(self, swap: _Swap, parts: Iterator[None]) -> None:
        """One part, if the steps have had their time since the last one."""
        started = time.monotonic()
        if started < swap.next_part:
            return
        try:
            next(parts, None)
        except Exception as error:
            if device_is_lost(error) or device_is_lost(error.__cause__):
                raise
            raise _as_answer(swap.model, error) from error
        swap.next_part = time.monotonic() + PAUSES * (time.monotonic() - started)

    def _switch(self, swap: _Swap, runner: ModelRunner) -> None:
        version = self._core.runners[swap.model].version + 1
        switch(self._core, swap.model, runner, version)
        swap.switched, swap.unaware = True, set(self._clients())
        self._tell_cards()
        logger.info("model %s has the weights of %s: version %d", swap.model, swap.folder, version)

    def _answer(self, swap: _Swap) -> None:
        """Answer once every worker knows, so that any of them then serves the new version."""
        if not swap.unaware:
            self._board.swapped(swap.model, "ok")
            swap.client.send(Reply(swap.number, Swapped()))
            self._swap = None


def _as_answer(model: str, error: Exception) -> ServiceError:
    """A new error for the operator: the frames of the original one would keep the weights in memory."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, CheckpointError):
        return InvalidRequest.field("checkpoint", str(error))
    if isinstance(error, OutOfMemory) or isinstance(error.__cause__, OutOfMemory):
        return Unavailable("the device has no memory for a second copy of the model")
    logger.error("model %s: the new weights cannot be served", model, exc_info=error)
    return InvalidRequest.field("checkpoint", f"the network raised {type(error.__cause__ or error).__name__}")
