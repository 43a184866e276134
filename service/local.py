"""The whole service in one process: for tests, for Ray, and for programs that embed it."""

import socket
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fastapi import FastAPI

from service.engine.core import EngineCore
from service.engine.loop import EngineLoop
from service.engine.swaps import Loader
from service.observe import tracing
from service.observe.scoreboard import EngineScoreboard, Layout, Scoreboard
from service.registry import load_core
from service.settings import Settings
from service.successor import successors
from service.web.app import assemble
from service.wire.async_engine import AsyncEngine
from service.wire.clients import Clients
from service.wire.control import CONTROL, STOP

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

WORKER_ENTRY = 1  # of the scoreboard; the engine has entry 0
JOIN_SECONDS = 10.0  # for the step that is running when the engine is told to end


class LocalEngine:
    """An EngineLoop in a thread with one client, which speaks with it over a socket as a worker would.

    Args:
        keys: names of API keys, whose requests are counted.
        load: see EngineLoop.
    """

    def __init__(self, core: EngineCore, keys: Iterable[str] = (), load: Loader | None = None):
        self.core = core
        self.board = Scoreboard(Layout(core.runners, keys), entries=2)
        self._control, control = socket.socketpair()
        mine, theirs = socket.socketpair()
        self._clients = Clients(control)
        self._clients.attach(theirs, WORKER_ENTRY)
        self.client = AsyncEngine(mine, self.board)
        self.loop = EngineLoop(core, self._clients, EngineScoreboard(self.board), load)
        self._thread = threading.Thread(target=self.loop.run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Refuse what is open, and end; a forward that hangs is left behind."""
        if self._thread.ident is None:
            self._clients.close("the engine has not started")
            self.client.close()
        elif self._thread.is_alive():
            self._control.send(CONTROL.pack(STOP, 0.0))
            self._thread.join(JOIN_SECONDS)
        self._control.close()


def create_app(settings: Settings) -> FastAPI:
    """The application with its engine in a thread; raises as load_core does."""
    provider = tracing.otlp_provider() if settings.otel else None
    return around(load_core(settings), settings, provider)


def around(core: EngineCore, settings: Settings, provider: "TracerProvider | None" = None) -> FastAPI:
    """The application around an engine core."""
    local = LocalEngine(core, settings.api_keys, successors(settings))
    # at its end the server has waited for its open requests already
    app = assemble(local.client, settings, WORKER_ENTRY, provider, local.start, local.stop)
    app.state.local = local
    return app
