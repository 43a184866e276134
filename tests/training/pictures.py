"""Folders of pictures for tests."""

from pathlib import Path

from PIL import Image


def write_pictures(root: Path, counts: dict[str, int], size: tuple[int, int] = (48, 32)) -> Path:
    """One folder a class; the colour of a picture counts its class and itself."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size, (100 * label, i, 255)).save(root / name / f"{i}.png")
    return root
