"""The files of a checkpoint, and files that are written whole or not at all. Imports no torch."""

import hashlib
import os
from pathlib import Path

WEIGHTS, CONFIG = "model.safetensors", "config.json"
GRAPH, CONSTANTS = "graph.xml", "graph.bin"  # see models/graph.py
SHIPPED = Path(__file__).resolve().parents[1] / "checkpoints"  # in a checkout and in an installed wheel


def default_checkpoints() -> Path:
    """`checkpoints` in the current folder if there is one, else the folder that comes with this project."""
    local = Path("checkpoints")
    return local if local.is_dir() else SHIPPED


def replace_file(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write the file whole or not at all, also when the power fails: without fsync the name can outlive the bytes.

    Its mode follows the umask. An error leaves the old file and no temporary one. keep: a name under which the old
    file stays; for a moment there is only that one.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the renames in it outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
