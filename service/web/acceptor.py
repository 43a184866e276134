"""Accept connections, balanced over workers: one that has its share leaves the next ones to the others."""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

logger = logging.getLogger(__name__)

PATIENCE = 0.1  # seconds for another worker to take a connection


class Acceptor:
    """Accepts connections in place of asyncio's Server, which cannot pause accepting.

    Args:
        listeners: shared with the other workers; the supervisor has called listen.
        protocol: makes the protocol of a connection.
        is_crowded: gets the connections being accepted; whether this worker then has more than its share.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        protocol: Callable[[], asyncio.Protocol],
        is_crowded: Callable[[int], bool],
    ):
        self._protocol, self._is_crowded = protocol, is_crowded
        self._loop = asyncio.get_running_loop()
        self._coming: set[asyncio.Task[None]] = set()
        self._listeners = list(listeners)
        for listener in listeners:
            listener.setblocking(False)
            self._loop.add_reader(listener, self._on_readable, listener)

    def _on_readable(self, listener: socket.socket) -> None:
        if self._is_crowded(len(self._coming)):
            self._pause(listener)
        else:
            self._take(listener)

    def _take(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:  # another worker was faster
            return
        except OSError as error:
            logger.warning("no connection can be taken: %s", error)
            self._pause(listener)
            return
        task = self._loop.create_task(self._receive(connection))
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)

    async def _receive(self, connection: socket.socket) -> None:
        with suppress(OSError):  # it has left already
            await self._loop.connect_accepted_socket(self._protocol, connection)

    def _pause(self, listener: socket.socket) -> None:
        self._loop.remove_reader(listener)
        self._loop.call_later(PATIENCE, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        """Accept a connection that no other worker has taken meanwhile, even when crowded."""
        if listener in self._listeners:
            self._loop.add_reader(listener, self._on_readable, listener)
            self._take(listener)

    def close(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)
        self._listeners.clear()

    async def wait_closed(self) -> None:
        """Nothing is left to wait for."""
