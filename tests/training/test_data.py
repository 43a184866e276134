import gzip
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from training.data import Data, DataError, Split, load_data, split_by_class, to_float, to_uint8

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_BATCH = 40


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote under protocol 2: every string as bytes, truth values as integers."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_string(self, obj: str | bytes) -> None:
        text = obj.encode("latin1") if isinstance(obj, str) else obj
        self.write(pickle.BINSTRING + len(text).to_bytes(4, "little") + text)  # type: ignore[attr-defined]
        self.memoize(obj)  # type: ignore[attr-defined]

    def save_truth(self, obj: bool) -> None:
        self.save(int(obj))  # type: ignore[attr-defined]

    dispatch[str] = dispatch[bytes] = save_string
    dispatch[bool] = save_truth


def python2_pickle(value: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar_files() -> dict[str, bytes]:
    """The seven files of the official archive, with PER_BATCH images each; image i of a batch is all i."""
    pixels = np.repeat(np.arange(PER_BATCH, dtype=np.uint8)[:, None], 3072, axis=1)
    pixels[:, 1024:2048] += 100  # the green plane
    pixels[:, 2048:] = np.random.default_rng(0).integers(256, size=(PER_BATCH, 1024))  # does not compress
    labels = [i % 10 for i in range(PER_BATCH)]
    batch = {b"batch_label": b"one", b"labels": labels, b"data": pixels, b"filenames": [b"a.png"] * PER_BATCH}
    files = {name: python2_pickle(batch) for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]}
    meta = {b"num_cases_per_batch": PER_BATCH, b"label_names": [n.encode() for n in CIFAR_CLASSES]}
    return files | {"batches.meta": python2_pickle(meta), "readme.html": b"<html>"}


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def all_images(data: Data) -> list[bytes]:
    return [i.numpy().tobytes() for split in (data.train, data.judge, data.test) for i in split.images]


def test_digits_are_padded_to_three_equal_channels(digits: Data) -> None:
    assert digits.train.images.shape == (3000, 3, 32, 32)
    assert digits.train.images.dtype == torch.uint8
    images = digits.test.images
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])
    border = images.clone()
    border[:, :, 2:30, 2:30] = 0
    assert border.sum() == 0
    assert images.max() == 255
    assert digits.class_names == [str(i) for i in range(10)]


def test_no_digit_stands_in_two_splits(digits: Data) -> None:
    images = all_images(digits)
    assert len(images) == len(set(images)) == 5000


def test_splits_are_balanced(digits: Data) -> None:
    for split, count in ((digits.train, 300), (digits.judge, 100), (digits.test, 100)):
        assert split.labels.bincount().tolist() == [count] * 10


def test_splits_are_the_same_on_every_call(digits: Data) -> None:
    torch.manual_seed(99)
    again = load_data("digits")
    for a, b in ((digits.train, again.train), (digits.judge, again.judge), (digits.test, again.test)):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def test_labels_belong_to_their_images(digits: Data) -> None:
    """Ones have the least ink of all classes, zeros more than twice as much."""
    ink = [to_float(digits.train.images[digits.train.labels == k]).mean() for k in range(10)]
    assert min(range(10), key=lambda k: float(ink[k])) == 1
    assert ink[0] + 1 > 2 * (ink[1] + 1)


def test_bytes_survive_the_way_to_float_and_back() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert to_float(values).min() == -1
    assert to_float(values).max() == 1
    assert torch.equal(to_uint8(to_float(values)), values)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("image_size", "channels", "shape"), [(28, 1, (1, 28, 28)), (64, 3, (3, 64, 64)), (33, 3, (3, 33, 33))]
)
def test_digits_in_other_sizes(image_size: int, channels: int, shape: tuple[int, ...]) -> None:
    assert load_data("digits", None, image_size, channels).test.images.shape[1:] == shape


@pytest.mark.parametrize("pack", [write_archive, write_folder], ids=["archive", "folder"])
def test_cifar10(pack: Callable[[Path, dict[str, bytes]], Path], tmp_path: Path) -> None:
    data = load_data("cifar10", pack(tmp_path / "cifar-10-python.tar.gz", cifar_files()))
    assert data.class_names == CIFAR_CLASSES
    assert data.train.images.shape == (5 * PER_BATCH, 3, 32, 32)
    assert data.train.images[7, :2, 5, 5].tolist() == [7, 107]
    assert data.train.labels[:12].tolist() == [*range(10), 0, 1]
    for split in (data.judge, data.test):
        assert split.labels.bincount().tolist() == [PER_BATCH // 20] * 10
    held_out = [int(s.images[i, 0, 0, 0]) for s in (data.judge, data.test) for i in range(len(s))]
    assert sorted(held_out) == list(range(PER_BATCH))
    assert [int(i) % 10 for i in data.test.images[:, 0, 0, 0]] == data.test.labels.tolist()


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:5],
        lambda raw: raw[: len(raw) // 2] + b"\xff" * 64 + raw[len(raw) // 2 + 64 :],
        lambda raw: gzip.compress(gzip.decompress(raw)[:-7000]),
        lambda raw: b"<html>not found</html>",
        lambda raw: b"",
    ],
    ids=["half", "header", "altered", "short-tar", "html", "empty"],
)
def test_a_damaged_archive_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = write_archive(tmp_path / "cifar.tar.gz", cifar_files())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="cifar.tar.gz|data_batch|test_batch"):
        load_data("cifar10", path)


def test_no_altered_stretch_of_an_archive_goes_unnoticed(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "cifar.tar.gz", cifar_files())
    raw = path.read_bytes()
    for start in range(1000, len(raw) - 100, len(raw) // 40):
        path.write_bytes(raw[:start] + bytes(255 - b for b in raw[start : start + 64]) + raw[start + 64 :])
        with pytest.raises(DataError):
            load_data("cifar10", path)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_missing_batch_is_named(name: str, tmp_path: Path) -> None:
    files = cifar_files()
    del files[name]
    with pytest.raises(DataError, match=f"lacks {name}"):
        load_data("cifar10", write_archive(tmp_path / "cifar.tar.gz", files))


class Forged:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_forged_batch_does_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "it-ran"
    forged = pickle.dumps({b"labels": Forged(proof), b"data": b""}, protocol=2)
    archive = write_archive(tmp_path / "cifar.tar.gz", cifar_files() | {"data_batch_2": forged})
    with pytest.raises(DataError, match=r"data_batch_2 .*refused to import \w+\.system"):
        load_data("cifar10", archive)
    assert not proof.exists()
    pickle.loads(forged)
    assert proof.exists()  # a plain pickle.load would have run it


@pytest.mark.parametrize(
    "batch",
    [
        {b"data": np.zeros((4, 100), np.uint8), b"labels": [0] * 4},
        {b"data": np.zeros((4, 3072), np.float64), b"labels": [0] * 4},
        {b"data": np.zeros((4, 3072), np.uint8), b"labels": [0] * 3},
        {b"labels": [0] * 4},
    ],
    ids=["width", "dtype", "labels", "no-data"],
)
def test_a_batch_of_another_shape_is_refused(batch: dict, tmp_path: Path) -> None:
    files = cifar_files() | {"data_batch_4": python2_pickle(batch)}
    with pytest.raises(DataError, match=r"data_batch_4 does not hold \[N, 3072\] bytes and N labels"):
        load_data("cifar10", write_archive(tmp_path / "cifar.tar.gz", files))


def write_images(root: Path, counts: dict[str, int], size: tuple[int, int] = (48, 32)) -> Path:
    """One folder a class; the colour of an image counts its class and itself."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size, (100 * label, i, 255)).save(root / name / f"{i}.png")
        (root / name / "notes.txt").write_text("no image")
    return root


def test_folder_reads_a_class_a_sub_folder(tmp_path: Path) -> None:
    data = load_data("folder", write_images(tmp_path / "pets", {"cat": 10, "dog": 5}))
    assert data.class_names == ["cat", "dog"]
    assert [len(s) for s in (data.train, data.judge, data.test)] == [9, 3, 3]
    assert data.train.images.shape[1:] == (3, 32, 32)
    for split in (data.train, data.judge, data.test):
        assert (split.images[:, 0, 3, 3].long() == 100 * split.labels).all()
    assert len(set(all_images(data))) == 15


def test_folder_keeps_the_middle_square(tmp_path: Path) -> None:
    for i in range(5):
        image = Image.new("RGB", (60, 20), "red")
        image.paste("blue", (20, 0, 40, 20))
        (tmp_path / "flags" / "a").mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "flags" / "a" / f"{i}.png")
    images = load_data("folder", tmp_path / "flags").train.images
    assert images[:, 2].min() == 255
    assert images[:, 0].max() == 0


def test_folder_in_grey(tmp_path: Path) -> None:
    data = load_data("folder", write_images(tmp_path / "pets", {"cat": 5}), 16, 1)
    assert data.train.images.shape[1:] == (1, 16, 16)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    root = write_images(tmp_path / "pets", {"cat": 6})
    whole = (root / "cat" / "3.png").read_bytes()
    (root / "cat" / "3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"3\.png is not a readable image"):
        load_data("folder", root)


@pytest.mark.parametrize("count", [0, 4])
def test_a_class_too_small_to_split_is_named(count: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"dog holds {count} images"):
        load_data("folder", write_images(tmp_path / "pets", {"cat": 6, "dog": count}))


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("mnist", None, "unknown data 'mnist'"),
        ("cifar10", None, "data cifar10 needs a path: --data-path"),
        ("folder", "nowhere", "nowhere does not exist"),
        ("folder", "empty", "empty has no sub-folders"),
    ],
)
def test_data_that_is_not_there(name: str, path: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        load_data(name, tmp_path / path if path else None)


def test_cifar10_of_another_size_is_refused(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "cifar.tar.gz", cifar_files())
    with pytest.raises(DataError, match=r"\(3, 32, 32\), not 3x64x64"):
        load_data("cifar10", archive, 64)


def test_digits_smaller_than_they_are_are_refused() -> None:
    with pytest.raises(DataError, match="image_size 16 is too small"):
        load_data("digits", None, 16)


def test_a_split_keeps_the_shares_of_every_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10)
    images = torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1)
    data = split_by_class(Split(images, labels), ["a", "b"])
    assert [s.labels.bincount().tolist() for s in (data.train, data.judge, data.test)] == [
        [30, 6],
        [10, 2],
        [10, 2],
    ]
