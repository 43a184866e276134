"""Read a folder of pictures with a sub-folder for every class; files that programs leave there are skipped."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from models.names import check_class_names, class_key

# fmt: off
SUFFIXES = {
    ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
}
# fmt: on
LITTER = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "lost+found"}  # as are names that begin with a dot
BACKGROUND = "white"  # stands in for what is transparent


class DataError(ValueError):
    """Data that cannot be read; the message names the path and what is wrong."""


@dataclass(frozen=True)
class ImageFolder:
    images: Tensor  # [N, C, H, W] uint8
    labels: Tensor  # [N] int64
    class_names: list[str]
    left_out: Counter[str]  # files that were not read, by suffix


def read_image_folder(path: Path, image_size: int, channels: int) -> ImageFolder:
    """Every picture below path/CLASS, at any depth, is of that class. Classes are in natural order: 2 before 10.

    Names that begin with a dot and those in LITTER are skipped; files with other suffixes are counted in left_out.

    Raises:
        DataError: no class, a class without pictures, two classes of one name, or a picture that cannot be read.
    """
    folders = sorted((p for p in _entries(path) if p.is_dir()), key=lambda p: natural_key(p.name))
    if not folders:
        raise DataError(f"{path} has no sub-folders: put the pictures of each class into a folder of its own")
    names = [unicodedata.normalize("NFC", folder.name).strip() for folder in folders]
    try:
        check_class_names(names)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    left_out = Counter(p.suffix.lower() for p in _entries(path) if p.is_file())
    images, labels = [], []
    for label, folder in enumerate(folders):
        files = sorted(_files(folder), key=lambda p: natural_key(str(p)))
        pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
        if not pictures:
            raise DataError(
                f"{folder} holds no picture: a class needs at least one of {', '.join(sorted(SUFFIXES))}"
            )
        left_out.update(file.suffix.lower() for file in files if file.suffix.lower() not in SUFFIXES)
        images += [read_image(file, image_size, channels) for file in pictures]
        labels += [label] * len(pictures)
    return ImageFolder(torch.stack(images), torch.tensor(labels), names, left_out)


def natural_key(name: str) -> list[str | int]:
    """Sort key that compares numbers by value and ignores case: a2 before A10."""
    parts = re.split(r"([0-9]+)", class_key(name))
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name in LITTER


def _entries(path: Path) -> list[Path]:
    return [p for p in path.iterdir() if not _is_litter(p.name)] if path.is_dir() else []


def _files(folder: Path) -> Iterator[Path]:
    """All files below the folder; links to folders are not followed, because they may form a loop."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _is_litter(name)]
        yield from (Path(parent, name) for name in files if not _is_litter(name))


def read_image(file: Path, image_size: int, channels: int) -> Tensor:
    """The picture as a viewer shows it, cropped to the middle square and scaled: [C, H, W] uint8.

    Of an animation only the first picture is read. Raises DataError.
    """
    try:
        with Image.open(file) as image:
            pixels = visible(image).convert("L" if channels == 1 else "RGB")
    except Image.DecompressionBombError as error:
        raise DataError(f"{file} has too many pixels: make it smaller, or take it out of the folder") from error
    except Exception as error:  # Pillow's decoders raise almost anything
        raise DataError(f"{file} is not a readable picture: {error}") from error
    side = min(pixels.size)
    left, top = (pixels.width - side) // 2, (pixels.height - side) // 2
    square = pixels.crop((left, top, left + side, top + side)).resize(
        (image_size, image_size), Image.Resampling.LANCZOS
    )
    return torch.from_numpy(np.array(square)).view(image_size, image_size, channels).permute(2, 0, 1)


def visible(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, reduce 16 bits to 8, and put transparent pictures on BACKGROUND."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow would clip 0..65535 at 255, which leaves white
        return Image.fromarray((np.asarray(image).astype(np.uint32).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    if not image.has_transparency_data:
        return image
    ground = Image.new("RGBA", image.size, BACKGROUND)
    return Image.alpha_composite(ground, image.convert("RGBA"))
