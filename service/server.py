"""The process: settings, application, uvicorn, signals."""

import signal
import sys

import uvicorn

from service.app import create_app
from service.settings import load_settings


def serve(host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; open requests are finished first.

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
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        server_header=False,
    )
    # uvicorn raises the signal again once it has shut down in good order: that is a success
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    uvicorn.Server(config).run()
