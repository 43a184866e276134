"""The CIFAR-10 archive: as its authors packed it, damaged, and forged."""

import gzip
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from run import main
from tests.training.runs import Config
from training.comparison.results import read_results
from training.data import Data, DataError, load_data
from training.train import train

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_BATCH = 40
LIST = """
[network.dit]
model = "dit"
arguments = {{ hidden_dim = 32, depth = 1, num_heads = 2 }}
[[group]]
name = "A"
data = "cifar10"
data_path = "{path}"
batch_size = 8
measure_at = [8]
samples = [20]
evaluations = 1
loss_images = 20
"""
DAMAGED = "cifar.tar.gz|data_batch|test_batch"  # the archive or the batch is named


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote under protocol 2: every string as bytes, truth values as integers."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)
    write: Callable[[bytes], Any]  # the stubs of pickle leave these three out
    memoize: Callable[[Any], None]
    save: Callable[[Any], None]

    def save_string(self, obj: str | bytes) -> None:
        text = obj.encode("latin1") if isinstance(obj, str) else obj
        self.write(pickle.BINSTRING + len(text).to_bytes(4, "little") + text)
        self.memoize(obj)

    def save_truth(self, obj: bool) -> None:
        self.save(int(obj))

    dispatch[str] = dispatch[bytes] = save_string
    dispatch[bool] = save_truth


def python2_pickle(value: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar_files(count: int = PER_BATCH) -> dict[str, bytes]:
    """The seven files of the official archive, with `count` images each; image i of a batch is all i."""
    pixels = np.repeat(np.arange(count, dtype=np.uint8)[:, None], 3072, axis=1)
    pixels[:, 1024:2048] += 100  # the green plane
    pixels[:, 2048:] = np.random.default_rng(0).integers(256, size=(count, 1024))  # does not compress
    labels = [i % 10 for i in range(count)]
    batch = {b"batch_label": b"one", b"labels": labels, b"data": pixels, b"filenames": [b"a.png"] * count}
    files = {name: python2_pickle(batch) for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]}
    meta = {b"num_cases_per_batch": count, b"label_names": [n.encode() for n in CIFAR_CLASSES]}
    return files | {"batches.meta": python2_pickle(meta), "readme.html": b"<html>"}


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def load(folder: Path, changes: dict[str, bytes]) -> Data:
    """An archive in which some files are others."""
    return load_data("cifar10", write_archive(folder / "cifar.tar.gz", cifar_files() | changes))


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


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


def test_training_evaluation_and_a_campaign_take_the_archive(
    tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.judge.EPOCHS", 1)
    monkeypatch.setattr("training.quality.REPEATS", 1)
    archive = write_archive(tmp_path / "cifar-10-python.tar.gz", cifar_files(80))
    folder = train(tiny_config(data="cifar10", data_path=archive, steps=1, out=tmp_path / "mine"))
    command = ["evaluate", str(folder), "--data-path", str(archive), "--images", "20", "--steps", "1"]
    command += ["--judge", str(tmp_path / "work/judges"), "--out", str(tmp_path / "page.html")]
    assert main(command) in (0, 1)
    facts = json.loads((tmp_path / "page.json").read_text())["checkpoints"]["mine"]
    assert (facts["data"], facts["same_data"], facts["held_out"], facts["judge_images"]) == (
        "cifar10",
        True,
        40,
        40,
    )
    (tmp_path / "list.toml").write_text(LIST.format(path=archive))
    places = [f"--{name}={tmp_path / place}" for name, place in (("runs", "runs.jsonl"), ("work", "work"))]
    assert main(["campaign", "--list", str(tmp_path / "list.toml"), *places]) == 0
    (line,) = read_results(tmp_path / "runs.jsonl")
    assert (line["run"], line["train_images"], len(line["judges"])) == ("A-dit", 400, 3)


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
    with pytest.raises(DataError, match=DAMAGED):
        load_data("cifar10", path)


def test_no_altered_stretch_of_an_archive_goes_unnoticed(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "cifar.tar.gz", cifar_files())
    raw = path.read_bytes()
    for start in range(1000, len(raw) - 100, len(raw) // 40):
        path.write_bytes(raw[:start] + bytes(255 - b for b in raw[start : start + 64]) + raw[start + 64 :])
        with pytest.raises(DataError, match=DAMAGED):
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
    with pytest.raises(DataError, match=r"data_batch_2 .*refused to import \w+\.system"):
        load(tmp_path, {"data_batch_2": forged})
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
    with pytest.raises(DataError, match=r"data_batch_4 does not hold \[N, 3072\] bytes and N labels"):
        load(tmp_path, {"data_batch_4": python2_pickle(batch)})


@pytest.mark.parametrize(
    "meta",
    [{b"num_vis": 3072}, {b"label_names": []}, {b"label_names": [1, 2]}, {b"label_names": b"cat"}],
    ids=["absent", "empty", "numbers", "text"],
)
def test_class_names_are_needed(meta: dict, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar\.tar\.gz: batches\.meta does not hold label_names"):
        load(tmp_path, {"batches.meta": python2_pickle(meta)})


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 10], "labels 0 to 10"), ([-1, 3], "labels -1 to 3"), ([0.5, 1.0], "N labels"), (["a", "b"], "N labels")],
    ids=["above", "negative", "fractions", "text"],
)
@pytest.mark.parametrize("name", ["data_batch_2", "test_batch"])
def test_labels_without_a_class_are_refused(name: str, labels: list, message: str, tmp_path: Path) -> None:
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": labels}
    with pytest.raises(DataError, match=f"{name} .*{message}"):
        load(tmp_path, {name: python2_pickle(batch)})


def test_cifar10_of_another_size_is_refused(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "cifar.tar.gz", cifar_files())
    with pytest.raises(DataError, match=r"\(3, 32, 32\), not 3x64x64"):
        load_data("cifar10", archive, 64)
