"""The engine as a worker's event loop sees it."""

import asyncio
import socket
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from itertools import count
from typing import Any

import numpy as np

from service.errors import DeadlinePassed, ServiceError, Unavailable
from service.observe.scoreboard import Scoreboard
from service.wire.frames import FrameReader, frame
from service.wire.messages import (
    Abort,
    Cards,
    FromEngine,
    FromWorker,
    Generate,
    ModelCard,
    Preview,
    Refusal,
    Reply,
    RequestOutput,
    SamplingParams,
    Seen,
    Swap,
    Swapped,
    TrajectoryPoint,
)

# Messages that one turn of the event loop handles. Many images may end with one step. If one turn answered all of
# them, their clients would send their next requests together, too, and the device would idle meanwhile. With 2
# instead of all, a closed loop of 64 clients gave 935 images a second instead of 780.
MESSAGES_A_TURN = 2

# Between Cards with another version of a model and Seen. By then all requests that were checked by the old version
# are sent, which happens in the turn of the event loop that checks them, or in the next one.
SEEN_SECONDS = 0.05

# Any number of the first two, then one of the others.
Answer = Preview | TrajectoryPoint | RequestOutput | Swapped | ServiceError


class AsyncEngine:
    """The other end of an engine's socket.

    Args:
        board: where the engine writes its state.
    """

    def __init__(self, sock: socket.socket, board: Scoreboard):
        self.board = board
        self.cards: dict[str, ModelCard] = {}  # by name; empty until the engine has read its checkpoints
        self.samplers: list[str] = []
        self.spacings: list[str] = []
        self.shed_load = False
        self.gone = ""  # why the engine no longer answers; empty while it does
        self.on_loss: Callable[[], None] = lambda: None  # called when `gone` is set
        self._sock, self._numbers = sock, count()
        self._link: _Link | None = None
        self._news = asyncio.Event()  # set by the next cards
        self._open: dict[int, asyncio.Queue[Answer]] = {}

    @property
    def is_ready(self) -> bool:
        return not self.gone and self.board.state == "ready" and bool(self.cards)

    async def connect(self) -> None:
        """Call once, on the event loop that calls generate."""
        loop = asyncio.get_running_loop()
        _, self._link = await loop.create_unix_connection(lambda: _Link(self), sock=self._sock)

    def close(self) -> None:
        if self._link is None:
            self._sock.close()
        else:
            self._link.transport.close()

    async def generate(
        self,
        params: SamplingParams,
        deadline_seconds: float | None = None,
        num_previews: int = 0,
        keeps_previews: bool = False,
        version: int | None = None,
    ) -> AsyncGenerator[Preview | TrajectoryPoint | RequestOutput]:
        """Run one request, within deadline_seconds if they are given; yields what it tells, then its images.

        Leaving the iterator early, or being cancelled in it, aborts the request within one step.

        A deterministic request waits for the backend that stays, because another one has other bits. Once the
        weights are replaced, the backend before is the one that stays for it.

        Args:
            version: of the model's card, by which params were checked.

        Raises:
            ServiceError: the engine refuses, fails or has gone.
        """
        if params.deterministic:
            deadline_seconds = await self._settle(params.model, version, deadline_seconds)
        link, number, answers = self._begin()
        link.send(Generate(number, params, deadline_seconds, num_previews, keeps_previews, version))
        try:
            while True:
                answer = await answers.get()
                if isinstance(answer, ServiceError):
                    raise answer
                assert not isinstance(answer, Swapped)  # which answers a swap
                yield answer
                if isinstance(answer, RequestOutput):
                    return
        finally:
            if self._open.pop(number, None) is not None:  # cancelled or closed: the client has gone
                link.send(Abort(number))

    async def _settle(self, model: str, version: int | None, seconds: float | None) -> float | None:
        """Wait until the backend of a model's version is final; returns what is left of the seconds.

        Raises:
            DeadlinePassed: the seconds were not enough.
        """

        def changes() -> bool:
            card = self.cards[model]
            return card.repeats_itself is None and version in (None, card.version)

        until = None if seconds is None else time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                while self.is_ready and changes():
                    await self._news.wait()
        except TimeoutError:
            text = "the deadline has passed before the model's backend was final"
            raise DeadlinePassed.field("deadline_ms", text) from None
        return None if until is None else max(0.0, until - time.monotonic())

    async def swap(self, model: str, folder: str) -> ModelCard:
        """Give a model the weights of a folder; returns its new card once all workers have it.

        A swap that has begun goes on when the caller is cancelled.

        Raises:
            ServiceError: the model keeps the weights that it has.
        """
        link, number, answers = self._begin()
        link.send(Swap(number, model, folder))
        try:
            answer = await answers.get()
        finally:
            self._open.pop(number, None)
        if isinstance(answer, ServiceError):
            raise answer
        return self.cards[model]

    def _begin(self) -> tuple["_Link", int, asyncio.Queue[Answer]]:
        """The link, a number for the next request, and the queue of its answers. Raises Unavailable."""
        if self._link is None or not self.is_ready:
            raise Unavailable.because(self.gone or "the service is not ready")
        number = next(self._numbers)
        self._open[number] = asyncio.Queue[Answer]()
        return self._link, number, self._open[number]

    def receive(self, message: FromEngine) -> None:
        match message:
            case Cards(cards, samplers, spacings, shed_load):
                before = {name: card.version for name, card in self.cards.items()}
                self.cards = {card.name: card for card in cards}
                if any(before.get(card.name, card.version) != card.version for card in cards):
                    asyncio.get_running_loop().call_later(SEEN_SECONDS, self._say_seen)
                self.samplers, self.spacings, self.shed_load = samplers, spacings, shed_load
                self._tell_news()
            case Reply(number, Preview() | TrajectoryPoint() as update):
                if number in self._open:  # else its client has gone
                    self._open[number].put_nowait(update)
            case Reply(number, RequestOutput() | Swapped() as output):
                self._end(number, output)
            case Reply(number, Refusal() as refusal):
                self._end(number, refusal.error())

    def _tell_news(self) -> None:
        """Wake the requests that wait for new cards, which end, too, when the engine has gone."""
        self._news.set()
        self._news = asyncio.Event()

    def _say_seen(self) -> None:
        if self._link is not None and not self.gone:
            self._link.send(Seen())

    def _end(self, number: int, answer: Answer) -> None:
        if (answers := self._open.pop(number, None)) is not None:
            answers.put_nowait(answer)

    def lost(self) -> None:
        """The engine has closed its end, or its process has died."""
        self.gone = self.gone or "the engine has stopped"
        for number in list(self._open):
            self._end(number, Unavailable.because(self.gone))
        self._tell_news()
        self.on_loss()


def pixels(update: Preview | RequestOutput) -> np.ndarray:
    """[H, W, C] or [n, H, W, C] uint8, in the memory of the message."""
    return np.frombuffer(update.pixels, np.uint8).reshape(update.shape)


class _Link(asyncio.Protocol):
    """Frames on an asyncio transport; messages of one turn of the event loop leave together."""

    transport: asyncio.Transport

    def __init__(self, engine: AsyncEngine):
        self._engine, self._loop = engine, asyncio.get_running_loop()
        self._reader = FrameReader[FromEngine](FromEngine)  # pyright: ignore[reportArgumentType]
        self._messages: list[FromWorker] = []
        self._received: deque[FromEngine] = deque()

    def send(self, message: FromWorker) -> None:
        if not self._messages:
            self._loop.call_soon(self._flush)
        self._messages.append(message)

    def _flush(self) -> None:
        messages, self._messages = self._messages, []
        self.transport.write(frame(messages))

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._received.extend(self._reader.feed(data))
        self._deliver()

    def _deliver(self) -> None:
        """A few messages, and the others with the next turns of the event loop."""
        self._hand_on(MESSAGES_A_TURN)
        if self._received:
            self.transport.pause_reading()
            self._loop.call_soon(self._deliver)
        else:
            self.transport.resume_reading()

    def _hand_on(self, count: int) -> None:
        for _ in range(min(len(self._received), count)):
            self._engine.receive(self._received.popleft())

    def connection_lost(self, exc: Exception | None) -> None:
        self._hand_on(len(self._received))
        self._engine.lost()
