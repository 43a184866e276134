"""The process that owns the device: settings, models, the loop.

What imports torch is imported by main, when it is known whether the process may do without Triton.
"""

import importlib
import logging
import socket
import sys
from typing import Any

from service.child import freeze_heap, open_board
from service.observe import logs
from service.observe.scoreboard import EngineScoreboard
from service.settings import SettingsError, choose_models, load_settings
from service.wire.control import BAD_INPUT, ENGINE_DIED

logger = logging.getLogger(__name__)


def main(given: dict[str, Any]) -> None:
    """given: control and board, which are descriptors, entries of the scoreboard, and names of the models."""
    settings = load_settings()
    logs.configure(settings.log_level, settings.log_format, "engine")
    import_kernels(settings.device)
    from models.checkpoint import CheckpointError
    from service.engine.loop import EngineLoop
    from service.registry import load_core
    from service.successor import successors
    from service.wire.clients import Clients

    logger.debug("torch and the kernels are imported")
    try:
        settings = choose_models(settings, given["models"])  # the folder may hold others by now
        core = load_core(settings)
    except (SettingsError, CheckpointError) as error:  # bad input: one sentence, no stack trace
        logger.critical("error: %s", error)
        sys.exit(BAD_INPUT)
    clients = Clients(socket.socket(fileno=given["control"]))
    board = EngineScoreboard(open_board(given["models"], settings, given["entries"], given["board"]))
    loop = EngineLoop(core, clients, board, successors(settings))
    freeze_heap()
    loop.run()
    if loop.died:
        sys.exit(ENGINE_DIED)


def import_kernels(device: str) -> None:
    """Import the kernels; without Triton where no GPU will be used, which saves 43 MiB and 0.2 s.

    Triton can be imported again afterwards, by networks of the operator.
    """
    import torch

    absent = "triton" not in sys.modules and (device == "cpu" or not torch.cuda.is_available())
    if absent:
        sys.modules["triton"] = None  # pyright: ignore[reportArgumentType]  # its import fails then
    try:
        importlib.import_module("kernels")
    finally:
        if absent:
            del sys.modules["triton"]
