"""The engine in a thread of this process: for tests, for programs that embed it, and for Ray."""

import socket
import threading
from collections.abc import Iterable

from service.engine.clients import Clients
from service.engine.core import EngineCore
from service.engine.loop import EngineLoop
from service.observe.board import Board, EngineBoard, Layout
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
        self.board = Board(Layout(core.runners, keys), rows=2)
        self._control, control = socket.socketpair()
        mine, theirs = socket.socketpair()
        self._clients = Clients(control)
        self._clients.attach(theirs)
        self.client = AsyncEngine(mine, self.board)
        self.loop = EngineLoop(core, self._clients, EngineBoard(self.board))
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
