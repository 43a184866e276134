"""uvicorn's HTTP/1.1 protocol on httptools, with limits on sizes, and with this service's errors."""

import asyncio
import logging
import re
import sys
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, Literal, NoReturn
from uuid import uuid4

from httptools import HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.errors import HeadersTooLarge, Malformed, ServiceError, in_bytes
from service.web.dialects import answer

logger = logging.getLogger(__name__)

MAX_HEAD = 16 * 1024  # bytes of a request line and its headers, and of what a body has beside its content
MAX_AHEAD = 32  # requests that may wait for the answer to an earlier one of the same connection
WHOLE_URL = re.compile(rb"https?://[^/?]*", re.IGNORECASE)  # absolute-form of a target: RFC 9112, 3.2.2


class UnchunkedCycle(RequestResponseCycle):
    """Answers HTTP/1.0, which has no chunks: without a Content-Length an answer ends with its connection."""

    _endless = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._endless = not any(name.lower() == b"content-length" for name, _ in message.get("headers", []))
        if self._endless:  # uvicorn sends what it expects
            self.chunked_encoding, self.expected_content_length = False, len(message.get("body", b""))
        await super().send(message)


class ExpectingCycle(RequestResponseCycle):
    """Answers a client that waits for 100 (Continue) before it sends its body.

    If the answer comes instead, the client may leave the body out and send its next request, which the parser would
    take for the body. So the connection is closed: RFC 9110, 10.1.1.
    """

    async def send(self, message: Any) -> None:
        if self.waiting_for_100_continue and self.more_body:
            self.keep_alive = False
        await super().send(message)


class Http1Protocol(HttpToolsProtocol):
    """Accepts whole URLs as targets, and refuses what RFC 9112 forbids and what is too large.

    `cycle` is the last request whose head has come, `_answering` the one whose answer is sent now. They differ
    where a client sends requests ahead; `pipeline` has those that wait.
    """

    transport: asyncio.Transport
    _answering: RequestResponseCycle | None = None
    _reading: Literal["", "head", "body"] = ""  # the part of a request that has begun and not ended
    _overhead = 0  # bytes read of this part that are no content
    _first = 0  # bytes that were received at once, if they begin with a request's head
    _received = b""  # what is being parsed
    _error: ServiceError | None = None  # why the parser was stopped; None: the bytes are no HTTP
    _turned_away = False  # what is sent from now on is not read

    def connection_lost(self, exc: Exception | None) -> None:
        self._abandon()  # uvicorn tells only `cycle`
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._overhead += len(data)
        self._first = 0 if self._reading else len(data)
        self._parse(data)
        # httptools collects a header until it ends. The middleware refuses large heads that do end.
        if self._reading and self._overhead > MAX_HEAD and not self._turned_away:
            self._error = head_too_large()
            self.send_400_response("")

    def _parse(self, data: bytes) -> None:
        self._received = data
        super().data_received(data)
        self._received = b""

    def _should_upgrade(self) -> bool:
        return True

    def handle_websocket_upgrade(self) -> None:
        """Read a request with an Upgrade header again without it: httptools skips its body and all that follows."""
        upgrade: Any = sys.exception()
        parser: Any = self.parser
        head = b"%s %s HTTP/%s\r\n" % (parser.get_method(), self.url, parser.get_http_version().encode())
        head += b"".join(b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade")
        self.parser = HttpRequestParser(self)  # after "Connection: close" the other reads nothing
        self._parse(head + b"\r\n" + self._received[upgrade.args[0] :])

    def on_message_begin(self) -> None:
        self._reading, self._overhead, self._first = "head", self._first, 0
        if len(self.pipeline) >= MAX_AHEAD:
            self._stop(Malformed(f"more than {MAX_AHEAD} requests were sent ahead"))
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading == "head":  # not a trailer, which nobody reads
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        parser: Any = self.parser
        version = parser.get_http_version()
        if parser.get_method() == b"CONNECT":
            self._stop(Malformed("this service is no proxy: it has no CONNECT"))
        if parser.should_upgrade():
            return  # handle_websocket_upgrade follows
        if any(name == b"transfer-encoding" and value.lower() != b"chunked" for name, value in self.headers):
            self._stop(Malformed("the only Transfer-Encoding is chunked"))
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and version != "1.0"):  # RFC 9112, 3.2
            self._stop(Malformed("an HTTP/1.1 request needs one Host header"))
        if found := WHOLE_URL.match(self.url):
            path = self.url[found.end() :]
            self.url = path if path.startswith(b"/") else b"/" + path
        self.expect_100_continue &= version == "1.1"
        super().on_headers_complete()
        if version != "1.1":
            self.cycle.__class__ = UnchunkedCycle
        elif self.expect_100_continue:
            self.cycle.__class__ = ExpectingCycle
        self._reading, self._overhead = "body", 0
        if not self.pipeline:
            self._answering = self.cycle

    def on_chunk_header(self) -> None:
        self._overhead = 0

    def on_body(self, body: bytes) -> None:
        self._overhead = max(0, self._overhead - len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._reading = ""
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._answering = self.pipeline[-1][0]
        super().on_response_complete()

    def _stop(self, error: ServiceError) -> NoReturn:
        """Make the parser stop, which ends in send_400_response."""
        self._error = error
        raise error

    @property
    def _is_busy(self) -> bool:
        return self._answering is not None and not self._answering.response_complete

    def _abandon(self) -> None:
        """Tell the application that the client has disconnected."""
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def _cut(self, reason: str) -> None:
        """Abort the connection: close() would wait until the client has read everything."""
        logger.info("connection of %s cut: %s", self.client, reason)
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP: uvicorn calls this while it handles the parser's error."""
        self._turned_away = True  # what follows is not read
        if self._reading == "body" and (self._answering is not self.cycle or self.cycle.response_started):
            self._cut("its request broke while it or an earlier one was answered")
            return
        if self._reading != "body" and self._is_busy:  # earlier requests still get their answers
            self.cycle.keep_alive = False
            return
        self._say(self._error or Malformed("this is no HTTP/1.1 request"))
        self.transport.close()

    def _say(self, error: ServiceError) -> None:
        """Send an error and close; without a request's path it has the dialect of /generate."""
        known: Any = self._answering.scope if self._answering and not self._answering.response_started else {}
        self._abandon()
        request_id = known.get("request_id") or uuid4().hex
        response = answer({"type": "http", "path": known.get("path", "/"), "request_id": request_id}, error)
        status = HTTPStatus(response.status_code)
        lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
        lines += [b"%s: %s" % header for header in complete(response.raw_headers, request_id)]
        body = b"" if known.get("method") == "HEAD" else bytes(response.body)
        self.transport.write(b"\r\n".join([*lines, b"connection: close", b"", body]))


def head_too_large() -> HeadersTooLarge:
    return HeadersTooLarge(f"request line and headers are larger than {in_bytes(MAX_HEAD)}")


def complete(headers: Iterable[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    """Add the headers of every answer; Cache-Control is no-store unless the answer has one."""
    said = list(headers)
    if not any(name == b"cache-control" for name, _ in said):
        said.append((b"cache-control", b"no-store"))
    # nosniff: a browser must not render an answer as HTML.
    return [*said, (b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
