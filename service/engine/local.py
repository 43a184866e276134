"""The engine in a thread of this process: for tests, for programs that embed it, and for Ray."""

import socket
import threading
from collections.abc import Iterable

from service.engine.clients import Clients
from service.engine.core import EngineCore
from service.engine.loop import EngineLoop
from service.observe.board import Board, EngineBoard, layout
from service.wire.async_engine import AsyncEngine
from service.wire.control import CONTROL, STOP

JOIN_SECONDS = 10.0  # for the step that is running when the engine is told to end


class LocalEngine:
    """An EngineLoop with one client, which speaks with it over a socket as a worker would.

    Args:
        keys: names of API keys, whose requests are counted.
    """

    def __init__(self, core: EngineCore, keys: Iterable[str] = ()):
        self.core = core
        self.board = Board(layout(core.runners, keys), rows=2)
        self._control, control = socket.socketpair()
        mine, theirs = socket.socketpair()
        self._clients = Clients(control)
        self._clients.attach(theirs)
        self.client = AsyncEngine(mine, self.board)
        self.loop = EngineLoop(core, self._clients, EngineBoard(self.board))
        self._thread = threading.Thread(target=self.loop.run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def request_stop(self, drain_seconds: float) -> None:
        """Not ready from now on; finish what was accepted, for at most drain_seconds, then end the thread.

        May be called from a signal handler. A later call can only shorten the time.
        """
        self._control.send(CONTROL.pack(STOP, drain_seconds))

    def join(self, timeout: float) -> None:
        """Wait for the end; a forward that hangs is left behind."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def stop(self, drain_seconds: float) -> None:
        """request_stop and join; close the sockets of an engine that never started."""
        if self._thread.ident is None:
            self._clients.close("the engine has not started")
            self.client.close()
        elif self._thread.is_alive():
            self.request_stop(drain_seconds)
            self.join(drain_seconds + JOIN_SECONDS)
        self._control.close()
