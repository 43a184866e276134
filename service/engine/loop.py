"""The loop that owns the device, the schedulers and every request; one thread, no lock.

Commands come in by local sockets, answers leave by them, one frame a step and worker. Whatever happens in here,
every request is answered once, or its worker sees the socket close.
"""

import ctypes
import logging
import time
from contextlib import suppress

from service.engine.canvas import check_brought
from service.engine.cards import describe, signature
from service.engine.core import EngineCore
from service.engine.plan import compile_plans
from service.engine.request import Request, RequestStatus
from service.engine.swaps import Loader, Swaps
from service.engine.versions import key
from service.errors import (
    NOT_REPEATED,
    DeadlinePassed,
    GenerationFailed,
    InvalidRequest,
    ServiceError,
    Unavailable,
)
from service.observe.scoreboard import EngineScoreboard
from service.wire.clients import Client, Clients
from service.wire.messages import Abort, FromWorker, Generate, Reply, RequestOutput, Seen, Swap

logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.5  # between heartbeats of an idle engine
SWAP_SECONDS = 0.005  # between two looks at a swap while the engine is idle
COMMAND_SECONDS = 0.002  # for commands between two steps, at most
GAUGE_SECONDS = 0.1  # between two updates of the gauges


class Stopped(Exception):
    """The engine was told to stop while it warmed up."""


class EngineLoop:
    """Runs an EngineCore for its clients.

    Args:
        board: gets the engine's state and counts.
        load: makes the runner of another checkpoint, for swaps; None: there are none.
    """

    def __init__(self, core: EngineCore, clients: Clients, board: EngineScoreboard, load: Loader | None = None):
        self._core, self._clients, self._board = core, clients, board
        self._swaps = Swaps(core, board, load, lambda: clients.all, self._tell_cards)
        self._open: dict[str, tuple[Client, int]] = {}  # requests and whose they are
        self._stop_at: float | None = None
        self._gauges_at = 0.0
        self._sent: object = None  # signature of the cards that the clients have
        self.ready = False
        self.died = False  # of an error

    def run(self) -> None:
        """Run until told to stop or until an error, then refuse every open request."""
        try:
            self._tell_cards()
            self._warm_up()
            while not self._finished():
                self._handle_commands()
                self._step()
                self._advance_swap()
                self._board.beat(time.monotonic())
            reason = "the service is shutting down"
        except Stopped:
            reason = "stopped while warming up"
        except BaseException as error:  # nothing may leave a client waiting
            logger.critical("the engine died", exc_info=True)
            reason, self.died = f"the engine died: {type(error).__name__}", True
        self.ready = False
        self._board.state("dead" if self.died else "stopped")
        for client, number in self._open.values():
            client.refuse(number, Unavailable.because(reason))
        self._open.clear()
        self._swaps.end(reason)
        self._clients.close(reason)

    def _warm_up(self) -> None:
        for model, runner in self._core.runners.items():
            cap = self._core.warm_up(model, self._between_warm_ups)
            logger.info("model %s is warm: %d rows a step, by %s", model, cap, runner.backend)
        _return_memory()
        self.ready = True
        self._tell_cards()
        self._board.stats(self._core.stats())
        self._board.state("ready")

    def _between_warm_ups(self) -> None:
        self._board.beat(time.monotonic())
        self._clients.receive(0.0)
        self._handle_received()
        self._clients.flush()
        if self._stop_at is not None:
            raise Stopped

    def _finished(self) -> bool:
        if self._stop_at is None:
            return False
        return not self._core.has_work or time.monotonic() >= self._stop_at

    def _handle_commands(self) -> None:
        """Handle commands, and wait for one when there is no work.

        COMMAND_SECONDS bounds the time, so that no flood of commands holds up the steps of accepted requests.
        """
        idle_seconds = SWAP_SECONDS if self._swaps.is_busy else IDLE_SECONDS
        self._receive(0.0 if self._core.has_work else idle_seconds)
        while (spare := self._core.spare_seconds()) > 0:
            self._receive(spare)
        self._show_gauges()

    def _receive(self, seconds: float) -> None:
        if not self._clients.received:  # else the last ones are not all handled, and the sockets keep what arrives
            self._clients.receive(seconds)
        self._handle_received()
        self._clients.flush()  # refusals need not wait for a step

    def _handle_received(self) -> None:
        while self._clients.stops:
            self._stop(self._clients.stops.popleft())
        received, until = self._clients.received, time.monotonic() + COMMAND_SECONDS
        while received:
            client, message = received.popleft()
            self._handle(client, message)
            if time.monotonic() > until:
                return

    def _handle(self, client: Client, message: FromWorker | None) -> None:
        match message:
            case Generate():
                self._add(client, message)
            case Abort(number):
                self._abort(client, number)
            case Swap():
                self._begin_swap(client, message)
            case Seen():
                self._swaps.seen(client)
            case None:  # the worker has gone
                self._swaps.seen(client)
                for number in list(client.open):
                    self._abort(client, number)

    def _stop(self, drain_seconds: float) -> None:
        """Not ready from now on; a later stop can only shorten the time."""
        stop_at = time.monotonic() + drain_seconds
        self._stop_at = stop_at if self._stop_at is None else min(self._stop_at, stop_at)
        self.ready = False
        self._board.state("stopping")
        self._swaps.end("the service is shutting down")

    def _refuses(self, client: Client, message: Generate | Swap) -> bool:
        """Refuse the message if the engine is not ready; returns whether it did."""
        if not self.ready:
            text = f"the service is {'not ready yet' if self._stop_at is None else 'shutting down'}"
            client.refuse(message.number, Unavailable.because(text))
        return not self.ready

    def _advance_swap(self) -> None:
        if self._swaps.is_busy:
            self._swaps.advance()
            self._clients.flush()

    def _begin_swap(self, client: Client, message: Swap) -> None:
        if not self._refuses(client, message):
            self._swaps.begin(client, message)

    def _add(self, client: Client, message: Generate) -> None:
        if self._refuses(client, message):
            return
        request_id = f"{client.name}/{message.number}"
        # before add, so that `run` answers this one, too, if add raises anything else
        self._open[request_id] = client, message.number
        client.open[message.number] = request_id
        try:
            self._core.add(_request(self._core, request_id, message))
        except ServiceError as error:
            self._close(request_id)
            client.refuse(message.number, error)

    def _abort(self, client: Client, number: int) -> None:
        request_id = client.open.get(number)
        if request_id is None:
            return
        self._close(request_id)
        if (request := self._core.abort(request_id)) is not None:
            self._board.spared(request.params.model, request.remaining_rows)

    def _close(self, request_id: str) -> tuple[Client, int]:
        client, number = self._open.pop(request_id)
        del client.open[number]
        return client, number

    def _step(self) -> None:
        progress = self._core.step()
        for request, preview in progress.previews:
            client, number = self._open[request.request_id]
            if request.keeps_previews:
                client.send(Reply(number, preview))
            else:
                client.show(number, preview)
        for request, point in progress.points:
            client, number = self._open[request.request_id]
            client.send(Reply(number, point))
        if progress.stats is not None:
            self._board.step(progress.stats)
        if progress.ended:
            self._tell_cards()  # before the answers: fixed_rows, on which their bits depend, may have changed
        for request in progress.ended:
            self._answer(request)
        self._clients.flush()
        if not self._core.has_work:
            self._gauges_at = 0.0  # it may now wait for long
        self._show_gauges()

    def _show_gauges(self) -> None:
        if (now := time.monotonic()) >= self._gauges_at:
            self._gauges_at = now + GAUGE_SECONDS
            self._board.stats(self._core.stats())

    def _answer(self, request: Request) -> None:
        client, number = self._close(request.request_id)
        if request.status is RequestStatus.FAILED:
            client.refuse(number, GenerationFailed(request.error))
        elif request.status is RequestStatus.EXPIRED:
            text = "the deadline has passed; work on the request has stopped"
            client.refuse(number, DeadlinePassed.field("deadline_ms", text))
        else:
            client.send(Reply(number, _output(request)))
            request.images.clear()  # request and tasks refer to each other: pixels need not wait for the collector

    def _tell_cards(self) -> None:
        if (now := signature(self._core)) != self._sent:
            self._sent = now
            self._clients.tell(describe(self._core))


def _return_memory() -> None:
    """Give memory that the start has freed back to the system; glibc would keep it."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _request(core: EngineCore, request_id: str, message: Generate) -> Request:
    """The request of a message. Raises ServiceError: the model cannot do it."""
    params, model = message.params, key(core, message.params.model, message.version)
    if model is None:  # the worker has hung for as long as a swap takes
        raise Unavailable.because("the model was replaced while the request was on its way")
    config = core.runners[model].config
    if params.deterministic and core.runners[model].repeats_itself is False:
        raise InvalidRequest.field("deterministic", NOT_REPEATED)
    try:
        plans = compile_plans(config, params)
    except ValueError as error:
        raise InvalidRequest.field("sampler", str(error)) from error
    try:
        check_brought(params, config.image_shape)
    except ValueError as error:
        raise InvalidRequest.field("image", str(error)) from error
    own = plans if params.mixtures else ()
    previews = message.num_previews, message.keeps_previews
    return Request(request_id, params, plans[0], message.deadline_seconds, *previews, model, plans=own)


def _output(request: Request) -> RequestOutput:
    images = [request.images[index] for index in range(len(request.tasks))]
    pixels = b"".join(image.tobytes() for image in images)
    times = (request.arrived, request.started, request.finished)
    forwards = tuple(task.forward for task in request.tasks)
    return RequestOutput(pixels, (len(images), *images[0].shape), *times, forwards)
