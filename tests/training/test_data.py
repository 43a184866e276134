"""Digits and other data: their splits, subsets, shapes, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.sampling import to_uint8
from tests.training.pictures import write_pictures
from training.data import Data, DataError, Split, fingerprint, load_data, split_by_class, take_subset, to_float


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


def pixels(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


def test_subsets_are_balanced_and_nested(digits: Data) -> None:
    small, large = (take_subset(digits.train, count) for count in ("100", "300"))
    assert small.labels.bincount().tolist() == [10] * 10
    assert large.labels.bincount().tolist() == [30] * 10
    assert pixels(small) < pixels(large) < pixels(digits.train)
    assert take_subset(digits.train, "15").labels.bincount().max() == 2
    assert fingerprint(take_subset(digits.train, "3000")) == fingerprint(digits.train)


def test_parts_are_balanced_and_disjoint(digits: Data) -> None:
    halves = [take_subset(digits.train, part) for part in ("1/2", "2/2")]
    assert [half.labels.bincount().tolist() for half in halves] == [[150] * 10] * 2
    assert pixels(halves[0]) | pixels(halves[1]) == pixels(digits.train)
    assert not pixels(halves[0]) & pixels(halves[1])
    with pytest.raises(DataError, match="subset 3001 of only 3000 pictures"):
        take_subset(digits.train, "3001")


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


@pytest.mark.parametrize("channels", [0, 2, 4, "3"])
@pytest.mark.parametrize("name", ["digits", "folder"])
def test_other_channels_than_grey_and_colour_are_refused(name: str, channels: Any, tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pets", {"cat": 6})
    with pytest.raises(DataError, match=f"image_channels must be 1 or 3, got {channels!r}"):
        load_data(name, root, 32, channels)


@pytest.mark.parametrize("image_size", [0, -8, "32", 32.0])
@pytest.mark.parametrize("name", ["digits", "folder"])
def test_image_sizes_that_are_no_sizes_are_refused(name: str, image_size: Any, tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pets", {"cat": 6})
    with pytest.raises(DataError, match=f"image_size must be a whole number from 1, got {image_size!r}"):
        load_data(name, root, image_size)


def test_a_fingerprint_tells_images_and_labels_apart() -> None:
    images, labels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    same, other = Split(images.clone(), labels.clone()), images.clone()
    other[1, 0, 3, 3] = 1
    assert fingerprint(Split(images, labels)) == fingerprint(same)
    prints = {fingerprint(s) for s in (same, Split(other, labels), Split(images, labels.flip(0)))}
    assert len(prints) == 3


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
