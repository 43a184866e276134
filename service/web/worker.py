"""An HTTP worker's process: settings, application, uvicorn. It imports no torch."""

import asyncio
import logging
import math
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp

from service.cgroup import cores
from service.child import freeze_heap, open_board
from service.observe import logs, tracing
from service.observe.scoreboard import CONNECTIONS, Entry, Scoreboard
from service.settings import Settings, load_settings
from service.web.acceptor import Acceptor
from service.web.app import assemble
from service.web.middleware import RequestIdMiddleware
from service.web.protocol import guarded
from service.web.routes import ops
from service.wire.async_engine import AsyncEngine
from service.wire.control import ANSWER_SECONDS, STARTED

logger = logging.getLogger(__name__)

ORPHAN_SECONDS = 1.0  # after the engine is lost, the supervisor has so long to send a signal
LAST_WORDS_SECONDS = 0.5  # after the second signal, refusals have so long to be sent
FAIR_SHARE = 1.25  # times the mean number of connections: a worker with more leaves new ones to the others
FREE_CONNECTIONS = 4  # above FAIR_SHARE are allowed, for small means
OTHER_FILES = 64  # open files beside the connections
BEAT_SECONDS = 1.0  # between two heartbeats
NICE = 5  # where the engine has no core of its own


class SideServer(uvicorn.Server):
    """/metrics on a port of its own, on the loop of the main server and under its limits."""

    def __init__(self, config: uvicorn.Config, listeners: list[socket.socket]):
        super().__init__(config)
        self.listeners = listeners
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.ensure_future(self.serve(self.listeners))

    async def end(self) -> None:
        self.should_exit = True
        if self._task is not None:
            await self._task


class Worker(uvicorn.Server):
    """Drains on signals of its supervisor: a byte on the control socket is the number of signals so far.

    After the first signal accepted requests are still answered, and new ones are refused.

    Args:
        entry: of the scoreboard, for its heartbeats.
        is_crowded: see service/web/acceptor.py.
        side: starts after this server and ends after it, so that its metrics show the drain.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        control: socket.socket,
        entry: Entry,
        is_crowded: Callable[[int], bool],
        side: SideServer | None = None,
    ):
        super().__init__(config)
        control.setblocking(False)
        self._control, self._entry, self._is_crowded, self._side = control, entry, is_crowded, side

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        cast(Any, self).servers = [Acceptor(sockets or [], self._protocol, self._is_crowded)]
        if self._side is not None:
            self._side.begin()
        asyncio.get_running_loop().add_reader(self._control, self._obey)
        self._beat()
        self._control.send(STARTED)

    def _beat(self) -> None:
        self._entry.beat(time.monotonic())
        asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat)

    def _protocol(self) -> asyncio.Protocol:
        made: Any = self.config.http_protocol_class
        return made(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _obey(self) -> None:
        for signals in self._control.recv(64) or b"\1":  # closed: the supervisor has gone, so end, too
            self.should_exit = True
            self.force_exit = signals > 2
            if signals == 2:
                asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, self._cut_connections)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self._side is not None:
            await self._side.end()

    def end_soon(self) -> None:
        """Handle a closed engine socket: the engine has died or dropped this worker, so this process ends."""
        asyncio.get_running_loop().call_later(ORPHAN_SECONDS, setattr, self, "should_exit", True)

    def _cut_connections(self) -> None:
        """Abort the connections that are still open: their clients do not send or read on."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def configure(
    app: ASGIApp,
    settings: Settings,
    drain_seconds: float = 0.0,
    count: Callable[[int], float] = float,
    refuse: Callable[[str], None] = lambda code: None,
) -> uvicorn.Config:
    """uvicorn's config with this service's limits, which only the protocol of protocol.py has.

    Args:
        drain_seconds: uvicorn waits so long, and ANSWER_SECONDS more, for open requests at the end.
        count, refuse: see service/web/protocol.py.
    """
    return uvicorn.Config(
        app,
        http=guarded(settings, connection_limit(settings.max_connections), count, refuse),
        ws="none",
        timeout_keep_alive=settings.keep_alive_seconds,
        log_config=None,  # service/observe/logs.py formats uvicorn's lines, too
        log_level="warning" if settings.log_level == "info" else settings.log_level,  # without start and end
        access_log=False,  # our access log has the request id and the key's name
        timeout_graceful_shutdown=math.ceil(drain_seconds) + ANSWER_SECONDS,
        server_header=False,
    )


def connection_limit(wanted: int) -> int:
    """`wanted`, or less if the process may not open so many files: without one not even a refusal can be sent."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit on sockets
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft < needed and (hard == resource.RLIM_INFINITY or soft < hard):
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < needed:
        logger.warning("%d connections at most: this process may open %d files", soft - OTHER_FILES, soft)
    return min(wanted, max(1, soft - OTHER_FILES))


def metrics_server(app: FastAPI, settings: Settings, listeners: list[socket.socket]) -> SideServer:
    side = Starlette(
        routes=[Route("/metrics", ops.metrics)],
        middleware=[Middleware(RequestIdMiddleware)],
    )
    side.state.handler = app.state.handler
    config = configure(side, settings)
    config.lifespan = "off"
    return SideServer(config, listeners)


def main(given: dict[str, Any]) -> None:
    """given: descriptors named control, board, engine, listeners, side; entry of the board, all entries, models."""
    if cores() == 1:
        os.nice(NICE)
    settings = load_settings()
    logs.configure(settings.log_level, settings.log_format, f"worker-{given['entry']}")
    board = open_board(given["models"], settings, given["entries"], given["board"])
    engine = AsyncEngine(socket.socket(fileno=given["engine"]), board)
    provider = tracing.otlp_provider() if settings.otel else None
    app = assemble(engine, settings, given["entry"], provider)
    side = metrics_server(app, settings, _sockets(given["side"])) if given["side"] else None
    count = partial(count_connections, board, given["entry"])
    refuse = partial(board.entry(given["entry"]).add, "protocol_refusals")
    config = configure(app, settings, settings.drain_seconds, count, refuse)
    crowded = partial(is_crowded, board, given["entry"])
    worker = Worker(config, socket.socket(fileno=given["control"]), board.entry(given["entry"]), crowded, side)
    engine.on_loss = worker.end_soon
    freeze_heap()
    worker.run(_sockets(given["listeners"]))


def count_connections(board: Scoreboard, entry: int, own: int) -> float:
    board.entry(entry).connections(own)
    return board.total(CONNECTIONS)


def is_crowded(board: Scoreboard, entry: int, more: int) -> bool:
    """Whether this worker, with a few more, holds clearly more than the mean of all workers' connections."""
    held = board.column(CONNECTIONS)  # the engine, in entry 0, holds none
    return held[entry] + more > FAIR_SHARE * sum(held) / (len(held) - 1) + FREE_CONNECTIONS


def _sockets(descriptors: list[int]) -> list[socket.socket]:
    return [socket.socket(fileno=descriptor) for descriptor in descriptors]
