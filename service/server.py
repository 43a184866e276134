"""The process: settings, application, uvicorn, signals."""

import math
import signal
import sys
from types import FrameType

import uvicorn

from service.app import create_app
from service.engine.thread import EngineThread
from service.settings import load_settings

ENGINE_DIED = 3  # exit code; the supervisor starts a new process, for this one cannot mend its device
ANSWER_SECONDS = 5  # for the last answers to leave, behind the engine's own limit


class DrainingServer(uvicorn.Server):
    """Tells the engine of the first signal: accepted work ends in answers, the rest in clear refusals."""

    def __init__(self, config: uvicorn.Config, engine: EngineThread, drain_seconds: float):
        super().__init__(config)
        self._engine, self._drain_seconds = engine, drain_seconds
        self._signals = 0

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


def serve(host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; what was accepted is finished first, within DIFFUSION_DRAIN_SECONDS.

    Exits with ENGINE_DIED when the engine dies, after every open request was told.

    Raises:
        SettingsError, CheckpointError: nothing has been started then.
    """
    settings = load_settings()
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level=settings.log_level,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds) + ANSWER_SECONDS,
        server_header=False,
    )
    # uvicorn raises the signal again once it has shut down in good order: that is a success
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    server = DrainingServer(config, app.state.thread, settings.drain_seconds)
    app.state.thread.on_death = server.end
    server.run()
    if app.state.thread.died:
        sys.exit(ENGINE_DIED)
