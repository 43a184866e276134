"""A client for load tests that needs little CPU time: HTTP/1.1 over kept connections, one small task a request.

It sends the bytes that it is given, and reads only the status, the length and Retry-After of an answer. The answer
must have a Content-Length.
"""

import asyncio
import ssl
import time
from dataclasses import dataclass

IDLE_SECONDS = 2.0  # of a kept connection; most servers close theirs after five


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request."""

    status: int
    size: int  # bytes of the body
    retry_after: int | None = None  # seconds


class Connection(asyncio.Protocol):
    """A connection with one request at a time."""

    def __init__(self) -> None:
        self._buffer, self._reply = bytearray(), asyncio.get_running_loop().create_future()
        self._head = b""
        self.last_used = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, request: bytes) -> "asyncio.Future[Reply]":
        self._reply, self._head = asyncio.get_running_loop().create_future(), b""
        self._buffer.clear()
        self.transport.write(request)
        return self._reply

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._head:
            head, found, body = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            self._head, self._buffer = bytes(head).lower(), body
            self._length = int(header(self._head, b"content-length") or 0)
        if len(self._buffer) >= self._length and not self._reply.done():
            wait = header(self._head, b"retry-after")
            self._reply.set_result(Reply(int(self._head[9:12]), self._length, int(wait) if wait else None))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._reply.done():
            self._reply.set_exception(ConnectionResetError("the server closed the connection"))

    @property
    def is_usable(self) -> bool:
        is_kept = b"connection: close" not in self._head
        return is_kept and not self.transport.is_closing() and time.monotonic() - self.last_used < IDLE_SECONDS


def header(head: bytes, name: bytes) -> bytes | None:
    """The value of a header, or None; head and name are in lower case."""
    start = head.find(b"\r\n" + name + b":")
    return None if start < 0 else head[start + len(name) + 3 :].partition(b"\r\n")[0].strip()


class Client:
    """Opens as many connections to one server as are needed at once, and keeps them."""

    def __init__(self, host: str, port: int, tls: bool = False):
        self._place = (host, port)
        self._tls = ssl.create_default_context() if tls else None
        self._kept: list[Connection] = []

    async def ask(self, request: bytes) -> Reply:
        """Send a request; when it is cancelled, the connection is closed.

        Raises:
            OSError: the server did not answer.
        """
        connection = await self._connection()
        try:
            reply = await connection.send(request)
        except BaseException:
            connection.transport.abort()
            raise
        connection.last_used = time.monotonic()
        self._kept.append(connection)
        return reply

    async def _connection(self) -> Connection:
        while self._kept:
            if (kept := self._kept.pop()).is_usable:
                return kept
            kept.transport.close()
        made = await asyncio.get_running_loop().create_connection(Connection, *self._place, ssl=self._tls)
        return made[1]

    def close(self) -> None:
        for connection in self._kept:
            connection.transport.close()
        self._kept.clear()
