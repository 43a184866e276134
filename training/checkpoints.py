"""Checkpoints by name or folder, as the command line takes them."""

from pathlib import Path

from models.checkpoint import CheckpointError
from models.files import CONFIG, default_checkpoints


def find_checkpoints(names: list[str], root: Path | None = None) -> dict[str, Path]:
    """The folder of each checkpoint, by the folder's name, which tables and pictures show.

    names: of folders in root (default: this project's checkpoints), or paths of folders anywhere.

    Raises:
        CheckpointError: a checkpoint does not exist, or two have the same name.
    """
    folders: dict[str, Path] = {}
    for name in names:
        folder = find_checkpoint(name, root)
        label = folder.resolve().name
        if label in folders:
            raise CheckpointError(f"{folder} and {folders[label]} have the same name: rename one of the folders")
        folders[label] = folder
    return folders


def find_checkpoint(name: str, root: Path | None = None) -> Path:
    """See find_checkpoints."""
    root = root or default_checkpoints()
    places = [root / name, Path(name)]
    for place in places:
        if (place / CONFIG).is_file():
            return place
    looked = " and ".join(dict.fromkeys(str(place.resolve()) for place in places))
    known = ", ".join(sorted(path.parent.name for path in root.glob(f"*/{CONFIG}"))) or "none"
    raise CheckpointError(f"no checkpoint {name!r}: looked for {CONFIG} in {looked}; {root.resolve()} has {known}")
