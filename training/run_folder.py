"""The folder of a run: one run at a time writes to it, and none over a checkpoint that it did not make."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.files import CONFIG, WEIGHTS
from training.state import PREVIOUS, STATE, StateError

logger = logging.getLogger(__name__)

LOCK = ".lock"  # stays when the run has ended: deleting it would let two runs hold two files of one name


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder, and clear what a killed run left half written. The lock ends when the process does.

    Raises:
        StateError: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, folder)
        for left in (STATE, WEIGHTS, CONFIG):
            (folder / f"{left}.tmp").unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode() or "unknown"
        raise StateError(
            f"{folder} is in use by another run (process {holder}): wait for its end, or choose another --out"
        ) from None
    except OSError as error:  # some network file systems know no locks
        logger.warning("%s cannot be locked (%s): start no second run in it", folder, error)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())


def check_own(folder: Path) -> None:
    """Raises StateError: the folder holds a checkpoint, but no state of the run that made it."""
    made = [name for name in (WEIGHTS, CONFIG) if (folder / name).exists()]
    if made and not any((folder / name).exists() for name in (STATE, PREVIOUS)):
        raise StateError(
            f"{folder} holds a checkpoint that this run did not make ({made[0]} without {STATE}): choose another "
            f"--out. To train on from its weights, give --init-from {folder} and another --out"
        )
