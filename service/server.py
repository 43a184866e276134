"""The process: settings, application, uvicorn, signals."""

import asyncio
import math
import signal
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from service import logs
from service.app import create_app
from service.engine.thread import EngineThread
from service.protocol import MAX_HEAD, Limits, guarded
from service.routes import ops
from service.settings import Settings, load_settings

ENGINE_DIED = 3  # exit code; the supervisor starts a new process, for this one cannot mend its device
ANSWER_SECONDS = 5  # for the last answers to leave, behind the engine's own limit


class SideServer(uvicorn.Server):
    """/metrics on a port of its own, on the loop of the main server and under its limits."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket):
        super().__init__(config)
        self._listener = listener
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """They are the main server's."""
        yield

    def begin(self) -> None:
        self._task = asyncio.ensure_future(self.serve([self._listener]))

    async def end(self) -> None:
        self.should_exit = True
        if self._task is not None:
            await self._task


class DrainingServer(uvicorn.Server):
    """Tells the engine of the first signal: accepted work ends in answers, the rest in clear refusals.

    Args:
        side: starts behind this server and ends after it, so that the drain can be watched.
    """

    def __init__(
        self, config: uvicorn.Config, engine: EngineThread, drain_seconds: float, side: SideServer | None = None
    ):
        super().__init__(config)
        self._engine, self._drain_seconds, self._side = engine, drain_seconds, side
        self._signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._side is not None:
            self._side.begin()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self._side is not None:
            await self._side.end()

    def end(self) -> None:
        """Shut down in good order; may be called from another thread."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, refuse what is left at the second, leave at once at the third."""
        self._signals += 1
        self._engine.request_stop(self._drain_seconds if self._signals == 1 else 0.0)
        if self._signals != 2:
            super().handle_exit(sig, frame)
        self.force_exit = self._signals > 2


def configure(app: ASGIApp, settings: Settings, drain_seconds: float = 0.0) -> uvicorn.Config:
    """uvicorn under this service's limits; h11 by name, for no other parser has them."""
    limits = Limits(
        settings.header_seconds, settings.body_seconds, settings.stream_seconds, settings.max_connections
    )
    return uvicorn.Config(
        app,
        http=guarded(limits),
        ws="none",
        h11_max_incomplete_event_size=MAX_HEAD,
        timeout_keep_alive=settings.keep_alive_seconds,
        log_config=None,  # service/logs.py writes its lines, too
        log_level=settings.log_level,
        access_log=False,  # ours knows the request's id and its key's name
        timeout_graceful_shutdown=math.ceil(drain_seconds) + ANSWER_SECONDS,
        server_header=False,
    )


def metrics_server(app: FastAPI, settings: Settings, host: str) -> SideServer | None:
    """None where /metrics is on the main port.

    Raises:
        OSError: the port is taken.
    """
    if settings.metrics_port is None:
        return None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, settings.metrics_port))
    except OSError:
        listener.close()
        raise
    side = Starlette(routes=[Route("/metrics", ops.metrics)])
    side.state.generator = app.state.generator
    config = configure(side, settings)
    config.lifespan = "off"
    return SideServer(config, listener)


def serve(host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; what was accepted is finished first, within DIFFUSION_DRAIN_SECONDS.

    Exits with ENGINE_DIED when the engine dies, after every open request was told.

    Raises:
        SettingsError, CheckpointError, OSError: nothing has been started then.
    """
    settings = load_settings()
    logs.configure(settings.log_level, settings.log_format)
    app = create_app(settings)
    config = configure(app, settings, settings.drain_seconds)
    config.host, config.port = host, port
    # uvicorn raises the signal again once it has shut down in good order: that is a success
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    side = metrics_server(app, settings, host)
    server = DrainingServer(config, app.state.thread, settings.drain_seconds, side)
    app.state.thread.on_death = server.end
    server.run()
    if app.state.thread.died:
        sys.exit(ENGINE_DIED)
