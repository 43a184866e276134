"""HTTP/1.1 with limits on time and connections, against slow or hostile clients."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, cast

from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.errors import Malformed, Overloaded
from service.paths import HEALTH
from service.settings import Settings
from service.web.http1 import Http1Protocol

logger = logging.getLogger(__name__)

MAX_DISCARD = 16 * 1024 * 1024  # bytes of a refused body that are discarded, so that its sender reads the answer
LINGER_SECONDS = 1.0  # a refused connection stays open so long, so that its client can read the refusal
RETRY_SECONDS = 1.0  # Retry-After of that refusal
MAX_EXTRA = 32  # connections of a worker beyond the limit, which may ask for HEALTH only
EXTRA_SECONDS = 2.0  # lifetime of such a connection
FIRST_BYTES = b"HTTP/1.1 "  # of every answer
WAITS = (0.0, 0.002, 0.008, 0.03, 0.1, 0.3, 1.0, 10.0, 400.0)  # seconds after each of FIRST_BYTES is sent early

Phase = Literal["head", "rest"]  # what a client has to send: a request's head, or a body that was answered already


class SentAhead:
    """A transport that omits the bytes of an answer that were sent before it."""

    def __init__(self, transport: asyncio.Transport):
        self._transport, self.bytes = transport, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._transport.write(data[self.bytes :])
        self.bytes = 0


class GuardedProtocol(Http1Protocol):
    """Closes connections whose client sends or reads too slowly, and refuses those beyond max_connections."""

    settings: Settings
    max_connections: int  # of the whole service
    count: Callable[[int], float]  # takes this process's open connections, returns those of the whole service
    refuse: Callable[[str], None]  # counts by code, for a line of the log each would let a flood fill it
    extra: set["GuardedProtocol"]  # connections beyond the limit, which may ask for HEALTH only
    _phase: Phase | None = None  # the phase that has a time limit now
    _deadline: asyncio.TimerHandle | None = None  # timer of that phase
    _unread: asyncio.TimerHandle | None = None  # runs while the client does not read what was sent
    _waited = _waiting_since = 0.0  # seconds spent waiting for the client to read this answer; start of _unread
    _discarded = 0  # bytes of a refused body

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        # With 0, writing pauses until the kernel has all bytes, so the timer _unread sees a client that stalls.
        transport.set_write_buffer_limits(high=0)
        if self.count(len(self.connections)) > self.max_connections:
            self._serve_health_only()
        else:
            self._await("head")

    def connection_lost(self, exc: Exception | None) -> None:
        self._await(None)
        self._stop_waiting_for_reader()
        self.extra.discard(self)
        super().connection_lost(exc)
        self.count(len(self.connections))

    def data_received(self, data: bytes) -> None:
        if self._turned_away:
            return
        if self._phase == "rest":
            self._discarded += len(data)
            if self._discarded > MAX_DISCARD:
                self._cut("its refused body does not end")
                return
        super().data_received(data)
        if not self.transport.is_closing():
            self._await(self._expected(idle="head"))

    def send_400_response(self, msg: str) -> None:
        self.refuse((self._error or Malformed).code)
        super().send_400_response(msg)

    def eof_received(self) -> Any:  # uvicorn's says None, asyncio's bool
        """Handle a half-closed connection: the client has left, or it only waits for its answer.

        To find out, send bytes: if the client's process is gone, its kernel answers with a reset. The only bytes
        known before the answer are FIRST_BYTES. A stream has no such bytes, so its connection is closed.

        Returns:
            Whether the connection stays open for the answer.
        """
        now = self._answering
        if now is None or now.response_complete or now.disconnected or self._reading == "body":
            return False  # nothing to answer
        if now.response_started:
            stays = now.expected_content_length > 0  # the answer has a Content-Length
        else:
            stays, ahead = True, SentAhead(self.transport)
            now.transport = cast(asyncio.Transport, ahead)
            self._send_ahead(now, ahead)
        self.cycle.keep_alive = False
        return stays

    def _send_ahead(self, now: RequestResponseCycle, ahead: SentAhead) -> None:
        """Send the next of FIRST_BYTES, and repeat after WAITS until the answer starts or the client resets."""
        if now.response_started or self.transport.is_closing():
            return
        if ahead.bytes == len(FIRST_BYTES):
            self._cut("it may have left: it sends no more, and its answer takes long")
            return
        self.transport.write(FIRST_BYTES[ahead.bytes : ahead.bytes + 1])
        ahead.bytes += 1
        self.loop.call_later(WAITS[ahead.bytes - 1], self._send_ahead, now, ahead)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._waited = 0.0
        if not self.transport.is_closing():
            self._await(self._expected(idle=None))  # between two requests uvicorn's keep-alive limit holds

    def _expected(self, idle: Phase | None) -> Phase | None:
        if self._is_busy:
            return None
        return "rest" if self._reading == "body" else idle

    def _await(self, phase: Phase | None) -> None:
        """Start the timer of a phase; None stops it. More bytes of the same phase do not restart it."""
        if phase == self._phase:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._phase, self._deadline, self._discarded = phase, None, 0
        if phase is not None:
            seconds = self.settings.header_seconds if phase == "head" else self.settings.body_seconds
            self._deadline = self.loop.call_later(seconds, self._cut, f"the {phase} of its request is late")

    def pause_writing(self) -> None:
        super().pause_writing()
        seconds = max(0.0, self.settings.stream_seconds - self._waited)
        self._unread = self.loop.call_later(seconds, self._cut, "it does not read its answer")
        self._waiting_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_waiting_for_reader()

    def _stop_waiting_for_reader(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
            self._waited += self.loop.time() - self._waiting_since

    def _serve_health_only(self) -> None:
        """Serve a connection beyond the limit for EXTRA_SECONDS; refuse any path but HEALTH."""
        self.connections.discard(self)
        self.count(len(self.connections))
        if len(self.extra) >= MAX_EXTRA:
            self._turn_away()
            return
        self.extra.add(self)
        self.loop.call_later(EXTRA_SECONDS, self.transport.abort)
        app = self.app

        async def health_only(scope: Scope, receive: Receive, send: Send) -> None:
            async def last(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
                await send(message)

            if scope["path"] in HEALTH:
                await app(scope, receive, last)
            elif self.transport.is_closing():
                self._abandon()
            else:
                self._turn_away()

        self.app = health_only

    def _turn_away(self) -> None:
        self._turned_away = True
        self.extra.discard(self)
        self.refuse(Overloaded.code)
        self._say(Overloaded("too many open connections: try again later", retry_after=RETRY_SECONDS))
        with suppress(OSError):  # it may have left already
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)


def guarded(
    settings: Settings, max_connections: int, count: Callable[[int], float], refuse: Callable[[str], None]
) -> Any:
    """A protocol class for uvicorn.Config(http=...)."""
    calls = {"count": staticmethod(count), "refuse": staticmethod(refuse)}
    facts = {"settings": settings, "max_connections": max_connections, "extra": set()} | calls
    return type("Protocol", (GuardedProtocol,), facts)
