"""The process: settings, application, uvicorn, signals."""

import asyncio
import logging
import math
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp

from service.engine.thread import EngineThread
from service.listening import bind, urls
from service.observe import logs
from service.settings import Settings, SettingsError, load_settings
from service.web.app import create_app
from service.web.middleware import RequestIdMiddleware
from service.web.protocol import MAX_HEAD, Limits, guarded
from service.web.routes import ops

logger = logging.getLogger(__name__)

ENGINE_DIED = 3  # exit code; the supervisor starts a new process, for this one cannot mend its device
ANSWER_SECONDS = 5  # for the last answers to leave, behind the engine's own limit
LAST_WORDS_SECONDS = 0.5  # for refusals to leave behind the second signal
OTHER_FILES = 64  # that are open beside the connections


class SideServer(uvicorn.Server):
    """/metrics on a port of its own, on the loop of the main server and under its limits."""

    def __init__(self, config: uvicorn.Config, listeners: list[socket.socket]):
        super().__init__(config)
        self.listeners = listeners
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """They are the main server's."""
        yield

    def begin(self) -> None:
        self._task = asyncio.ensure_future(self.serve(self.listeners))

    async def end(self) -> None:
        self.should_exit = True
        if self._task is not None:
            await self._task


class DrainingServer(uvicorn.Server):
    """Says where it listens once the engine is warm, and tells the engine of signals.

    After the first signal accepted work ends in answers, the rest in clear refusals.

    Args:
        side: starts after this server and ends after it, so that the drain can be watched.
    """

    def __init__(
        self, config: uvicorn.Config, engine: EngineThread, drain_seconds: float, side: SideServer | None = None
    ):
        super().__init__(config)
        self._engine, self._drain_seconds, self._side = engine, drain_seconds, side
        self._signals = 0
        self._urls: list[str] = []
        self._announced = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._urls = urls(sockets or [])
        if self._side is not None:
            self._side.begin()

    async def on_tick(self, counter: int) -> bool:
        """uvicorn calls this ten times a second."""
        if self._engine.ready and not self._announced:
            self._announced = True
            self._announce()
        return await super().on_tick(counter)

    def _announce(self) -> None:
        metrics = [f"{url}/metrics" for url in urls(self._side.listeners if self._side else [])]
        text = "listening on %s" + (", metrics on %s" if metrics else "")
        places = [" and ".join(found) for found in (self._urls, metrics) if found]
        logger.info(text, *places, extra={"fields": {"urls": self._urls, "metrics_urls": metrics}})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._signals:
            logger.info("stopping: accepted requests may take %g s more", self._drain_seconds)
        await super().shutdown(sockets)
        if self._side is not None:
            await self._side.end()

    def end(self) -> None:
        """Shut down in good order; may be called from another thread."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, refuse what is left and leave at the second, without a word at the third."""
        self._signals += 1
        self._engine.request_stop(self._drain_seconds if self._signals == 1 else 0.0)
        if self._signals == 2:
            with suppress(RuntimeError):  # no loop runs (yet): there is nobody to wait for
                asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, self._cut_connections)
        else:
            super().handle_exit(sig, frame)
        self.force_exit = self._signals > 2

    def _cut_connections(self) -> None:
        """Of clients that neither send the rest of their request nor read their answer."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def configure(app: ASGIApp, settings: Settings, drain_seconds: float = 0.0) -> uvicorn.Config:
    """uvicorn under this service's limits; h11 by name, for no other parser has them."""
    seconds = (settings.header_seconds, settings.body_seconds, settings.stream_seconds)
    limits = Limits(*seconds, connection_limit(settings.max_connections))
    return uvicorn.Config(
        app,
        http=guarded(limits),
        ws="none",
        h11_max_incomplete_event_size=MAX_HEAD,
        timeout_keep_alive=settings.keep_alive_seconds,
        log_config=None,  # service/observe/logs.py writes its lines, too
        log_level="warning" if settings.log_level == "info" else settings.log_level,  # start and end are told here
        access_log=False,  # ours knows the request's id and its key's name
        timeout_graceful_shutdown=math.ceil(drain_seconds) + ANSWER_SECONDS,
        server_header=False,
    )


def connection_limit(wanted: int) -> int:
    """As many as may be open at once; beyond the limit on open files not even a refusal could be said."""
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
    side.state.generator = app.state.generator
    config = configure(side, settings)
    config.lifespan = "off"
    return SideServer(config, listeners)


def serve(host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; what was accepted is finished first, within DIFFUSION_DRAIN_SECONDS.

    Exits with ENGINE_DIED when the engine dies, after every open request was told.

    Raises:
        SettingsError, CheckpointError, OSError: nothing has been started then.
    """
    settings = load_settings()
    if settings.metrics_port == port:
        raise SettingsError(f"setting DIFFUSION_METRICS_PORT: {port} is the port of the service itself")
    logs.configure(settings.log_level, settings.log_format)
    # before the models are loaded, which takes long
    listeners = bind(host, port)
    side_listeners = bind(host, settings.metrics_port) if settings.metrics_port else None
    app = create_app(settings)
    config = configure(app, settings, settings.drain_seconds)
    side = metrics_server(app, settings, side_listeners) if side_listeners else None
    server = DrainingServer(config, app.state.thread, settings.drain_seconds, side)
    app.state.thread.on_death = server.end
    server.run(listeners)
    if app.state.thread.died:
        sys.exit(ENGINE_DIED)
