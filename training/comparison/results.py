"""The lines of a campaign's results, and the locks that keep two processes from one run."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = {"group", "run", "network"}


def read_results(path: Path) -> list[dict[str, Any]]:
    """One JSON object a line. A last line without its end was cut by a kill or a power cut, and does not count.

    Raises:
        ValueError: another line is damaged, or does not say what it belongs to.
    """
    lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is damaged: {error}") from error
        if not isinstance(found[-1], dict) or not found[-1].keys() >= NAMES:
            raise ValueError(f"{path}, line {number} must be an object with {', '.join(sorted(NAMES))}")
    return found


def append_result(path: Path, line: dict[str, Any]) -> None:
    """Append a line under a lock, and fsync, so that it is durable when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(path) as descriptor:
        content = path.read_bytes()
        os.ftruncate(descriptor, content.rfind(b"\n") + 1)  # what a kill left of a line
        os.lseek(descriptor, 0, os.SEEK_END)
        os.write(descriptor, (json.dumps(line) + "\n").encode())
        os.fsync(descriptor)


@contextmanager
def held(path: Path, wait: bool = True) -> Iterator[int]:
    """A descriptor of the file, locked until the end; 0 where another process holds it and nobody waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor if lock(descriptor, wait) else 0
    finally:
        os.close(descriptor)


def lock(descriptor: int, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
