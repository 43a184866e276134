"""uvicorn's HTTP/1.1 protocol with limits on time, size and connections, against slow or hostile clients."""

import asyncio
import logging
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Literal
from uuid import uuid4

import h11
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import HeadersTooLarge, Malformed, Overloaded, ServiceError
from service.settings import Settings
from service.web.dialects import answer

logger = logging.getLogger(__name__)

MAX_HEAD = 16 * 1024  # bytes of a request line and its headers
MAX_DISCARD = 16 * 1024 * 1024  # bytes of a refused body that are discarded, so that its sender reads the answer
LINGER_SECONDS = 1.0  # a refused connection stays open so long, so that its client can read the refusal
RETRY_SECONDS = 1.0  # Retry-After of that refusal
HEALTH_PATHS = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}  # answered beyond the limit, too
MAX_EXTRA = 32  # connections of a worker beyond the limit, which may ask for HEALTH_PATHS only
EXTRA_SECONDS = 2.0  # lifetime of such a connection
WHOLE_URL = re.compile(rb"https?://[^/?]*", re.IGNORECASE)  # absolute-form of a target: RFC 9112, 3.2.2
FIRST_BYTES = b"HTTP/1.1 "  # of every answer
WAITS = (0.0, 0.002, 0.008, 0.03, 0.1, 0.3, 1.0, 10.0, 400.0)  # seconds after each of FIRST_BYTES is sent early

Phase = Literal["head", "rest"]  # what a client has to send: a request's head, or a body that was answered already


class Connection(h11.Connection):
    """Accepts whole URLs as targets, and omits the bytes of an answer that were sent early."""

    ahead = 0  # bytes of FIRST_BYTES that were sent early
    head: h11.Response | None = None  # of the last answer

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request) and (found := WHOLE_URL.match(event.target)):
            path = event.target[found.end() :]
            target = path if path.startswith(b"/") else b"/" + path
            return h11.Request(
                method=event.method, headers=list(event.headers), target=target, http_version=event.http_version
            )
        return event

    @property
    def is_answering(self) -> bool:
        """Whether a complete request waits for its answer, or for the rest of one with a Content-Length."""
        if self.their_state not in (h11.DONE, h11.MUST_CLOSE):
            return False
        if self.our_state is h11.SEND_BODY and self.head is not None:
            return any(name == b"content-length" for name, _ in self.head.headers)
        return self.our_state is h11.SEND_RESPONSE

    def send(self, event: Any) -> Any:
        data = super().send(event)
        if isinstance(event, h11.Response):
            self.head = event
        if self.ahead and data:
            data, self.ahead = data[self.ahead :], 0
        return data


class GuardedProtocol(H11Protocol):
    """Closes connections whose client sends or reads too slowly, and refuses those beyond max_connections."""

    settings: Settings
    max_connections: int  # of the whole service
    count: Callable[[int], float]  # takes this process's open connections, returns those of the whole service
    extra: set["GuardedProtocol"]  # connections beyond the limit, which may ask for HEALTH_PATHS only
    conn: Connection
    _turned_away = False
    _phase: Phase | None = None  # the phase that has a time limit now
    _deadline: asyncio.TimerHandle | None = None  # timer of that phase
    _unread: asyncio.TimerHandle | None = None  # runs while the client does not read what was sent
    _waited = _waiting_since = 0.0  # seconds spent waiting for the client to read this answer; start of _unread
    _discarded = 0  # bytes of a refused body

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.conn = Connection(h11.SERVER, MAX_HEAD)
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

    def eof_received(self) -> Any:  # uvicorn's says None, asyncio's bool
        """Handle a half-closed connection: the client has left, or it only waits for its answer.

        To find out, send bytes: if the client's process is gone, its kernel answers with a reset. The only bytes
        known before the answer are FIRST_BYTES. A stream has no such bytes, so its connection is closed.

        Returns:
            Whether the connection stays open for the answer.
        """
        if not self.conn.is_answering:
            return False
        self.cycle.keep_alive = False
        self._send_ahead()
        return True

    def _send_ahead(self) -> None:
        """Send the next of FIRST_BYTES, and repeat after WAITS until the answer starts or the client resets."""
        if self.conn.our_state is not h11.SEND_RESPONSE:
            return
        if self.conn.ahead == len(FIRST_BYTES):
            self._cut("it may have left: it sends no more, and its answer takes long")
            return
        self.transport.write(FIRST_BYTES[self.conn.ahead : self.conn.ahead + 1])
        self.conn.ahead += 1
        self.loop.call_later(WAITS[self.conn.ahead - 1], self._send_ahead)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._waited = 0.0
        if not self.transport.is_closing():
            self._await(self._expected(idle=None))  # between two requests uvicorn's keep-alive limit holds

    def _expected(self, idle: Phase | None) -> Phase | None:
        if self.conn.their_state is h11.IDLE:
            return idle
        answered = self.cycle is not None and self.cycle.response_complete
        return "rest" if answered and self.conn.their_state is h11.SEND_BODY else None

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

    def _cut(self, reason: str) -> None:
        """Abort the connection: close() would wait until the client has read everything."""
        logger.info("connection of %s cut: %s", self.client, reason)
        self.transport.abort()

    def _serve_health_only(self) -> None:
        """Serve a connection beyond the limit for EXTRA_SECONDS; refuse any path but HEALTH_PATHS."""
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

            if scope["path"] in HEALTH_PATHS:
                await app(scope, receive, last)
            elif not self.cycle.disconnected:
                self._abandon()
                self._turn_away()

        self.app = health_only

    def _abandon(self) -> None:
        """Tell the application that the client has disconnected."""
        self.cycle.disconnected = True
        self.cycle.message_event.set()

    def _turn_away(self) -> None:
        self._turned_away = True
        self.extra.discard(self)
        self._say(Overloaded("too many open connections: try again later", retry_after=RETRY_SECONDS))
        with suppress(OSError):  # it may have left already
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP; uvicorn calls this while it handles h11's error, whose status hint is used."""
        hint = getattr(sys.exception(), "error_status_hint", 400)
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._cut("its request broke while it was answered")
            return
        if self.cycle is not None:
            self._abandon()
        too_large = HeadersTooLarge(f"request line and headers are larger than {MAX_HEAD} bytes")
        self._say(too_large if hint == 431 else Malformed("this is no HTTP/1.1 request"))
        self.transport.close()

    def _say(self, error: ServiceError) -> None:
        """Send an error and close; without a request's path it has the dialect of /generate."""
        known = self.cycle.scope if self.cycle is not None and not self.cycle.response_started else {}
        request_id = known.get("request_id") or uuid4().hex
        response = answer({"type": "http", "path": known.get("path", "/"), "request_id": request_id}, error)
        headers = [*complete(response.raw_headers, request_id), (b"connection", b"close")]
        head = h11.Response(status_code=response.status_code, headers=headers)
        body = b"" if known.get("method") == "HEAD" else bytes(response.body)
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")


def complete(headers: Iterable[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    """Add the headers of every answer; Cache-Control is no-store unless the answer has one."""
    said = list(headers)
    if not any(name == b"cache-control" for name, _ in said):
        said.append((b"cache-control", b"no-store"))
    # nosniff: a browser must not render an answer as HTML.
    return [*said, (b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]


def guarded(settings: Settings, max_connections: int, count: Callable[[int], float]) -> Any:
    """A protocol class for uvicorn.Config(http=...)."""
    facts = {"settings": settings, "max_connections": max_connections, "count": staticmethod(count), "extra": set()}
    return type("LimitedProtocol", (GuardedProtocol,), facts)
