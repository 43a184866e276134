"""The process that owns the device: settings, models, the loop."""

import logging
import socket
import sys
from typing import Any

from models.checkpoint import CheckpointError
from service.child import open_board, spare_collector
from service.engine.clients import Clients
from service.engine.loop import EngineLoop
from service.local import load_core
from service.observe import logs
from service.observe.board import EngineBoard
from service.settings import SettingsError, load_settings
from service.successor import successors
from service.wire.control import BAD_INPUT, ENGINE_DIED

logger = logging.getLogger(__name__)


def main(given: dict[str, Any]) -> None:
    """given: control and board, which are descriptors, rows of the board, and names of the models."""
    settings = load_settings()
    logs.configure(settings.log_level, settings.log_format, "engine")
    try:
        core = load_core(settings)
    except (SettingsError, CheckpointError) as error:  # bad input: one sentence, no stack trace
        logger.critical("error: %s", error)
        sys.exit(BAD_INPUT)
    clients = Clients(socket.socket(fileno=given["control"]))
    board = EngineBoard(open_board(given["models"], settings, given["rows"], given["board"]))
    loop = EngineLoop(core, clients, board, successors(settings))
    spare_collector()
    loop.run()
    if loop.died:
        sys.exit(ENGINE_DIED)
