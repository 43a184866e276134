"""The folder of a run: a lock against two runs in it, and a check against overwriting a foreign checkpoint."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.files import CONFIG, WEIGHTS
from training.state import PREVIOUS, STATE, StateError

logger = logging.getLogger(__name__)

LOCK = ".lock"  # never deleted: otherwise two runs could lock two files of this name


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder, and delete temporary files of a killed run. The lock ends with the process.

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
