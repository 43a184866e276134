"""A folder of pictures as people have it: they are read as viewers show them, and litter is left out."""

import io
import shutil
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from models.checkpoint import ModelConfig, load_checkpoint
from models.names import class_key
from tests.training.pictures import write_pictures
from tests.training.runs import Config
from training.config import LATER
from training.data import DataError, Split, hold_back, load_data
from training.image_folder import LITTER, SUFFIXES, natural_key, read_image, read_image_folder
from training.train import train


def test_every_sub_folder_is_a_class(tmp_path: Path) -> None:
    data = load_data("folder", write_pictures(tmp_path / "pets", {"cat": 10, "dog": 5}))
    assert data.class_names == ["cat", "dog"]
    assert data.train.images.shape == (15, 3, 32, 32)
    assert (data.train.images[:, 0, 3, 3].long() == 100 * data.train.labels).all()
    assert data.left_out == ""


@pytest.mark.parametrize(
    ("cats", "dogs", "share", "train", "judge", "test"),
    [
        (3, 5, 0.0, [3, 5], [], []),
        (1, 2, 0.9, [1, 1], [], [0, 1]),
        (150, 100, 0.2, [120, 80], [], [30, 20]),
        (100, 121, 0.9, [10, 12], [], [90, 109]),
        (112, 130, 0.9, [11, 13], [50, 58], [51, 59]),
    ],
    ids=["none", "one-is-left", "few", "one-class-has-few", "enough-for-a-judge"],
)
def test_a_share_of_every_class_is_held_back(
    cats: int, dogs: int, share: float, train: list[int], judge: list[int], test: list[int]
) -> None:
    images = torch.arange(cats + dogs).view(-1, 1, 1, 1)
    data = hold_back(Split(images, torch.tensor([0] * cats + [1] * dogs)), ["cat", "dog"], share)
    parts = data.train, data.judge, data.test
    assert [part.labels.bincount().tolist() for part in parts] == [train, judge, test]
    assert sorted(torch.cat([part.images for part in parts]).flatten().tolist()) == list(range(cats + dogs))


def test_the_same_pictures_are_held_back_again(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pets", {"cat": 10, "dog": 5})
    first, again = (load_data("folder", root, hold_out=0.2) for _ in range(2))
    assert first.test.labels.tolist() == [0, 0, 1]
    assert torch.equal(first.test.images, again.test.images)


def test_what_a_run_holds_back_is_part_of_its_recipe(tmp_path: Path, tiny_config: Config) -> None:
    pets = write_pictures(tmp_path / "pets", {"cat": 10, "dog": 10})
    folder = train(tiny_config(data="folder", data_path=pets, steps=1))
    facts = load_checkpoint(folder)[1].training
    assert (facts["recipe"]["hold_out"], facts["train_images"]) == (0.2, 16)
    with pytest.raises(ValueError, match=r"hold_out was 0.2, now 0.0; train_sha256"):
        train(tiny_config(data="folder", data_path=pets, steps=1, hold_out=0.0))
    assert LATER["hold_out"] == 0.0
    assert tiny_config().hold_out == 0.0
    with pytest.raises(ValueError, match="hold_out is for data folder: digits has held-out pictures of its own"):
        tiny_config(hold_out=0.1)


def test_the_middle_square_is_kept(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    image.save(tmp_path / "flag.png")
    pixels = read_image(tmp_path / "flag.png", 32, 3)
    assert pixels[2].min() == 255
    assert pixels[0].max() == 0


def test_grey_is_one_channel(tmp_path: Path) -> None:
    data = load_data("folder", write_pictures(tmp_path / "pets", {"cat": 5}), 16, 1)
    assert data.train.images.shape[1:] == (1, 16, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_viewers_show_them(orientation: int, tmp_path: Path) -> None:
    upright = Image.new("RGB", (32, 32), "white")
    upright.paste("red", (0, 0, 32, 8))  # a bar on top
    upright.paste("blue", (0, 8, 8, 16))  # and a corner on the left
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)  # fmt: skip
    stored = upright.transpose(method) if method is not None else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    expected = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    assert torch.equal(read_image(tmp_path / "photo.png", 32, 3), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_is_white(mode: str, channels: int, tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[8:24, 8:24, 3] = 255  # an opaque black square on nothing
    image = Image.fromarray(pixels)
    if mode == "P":
        image = Image.frombytes("P", (32, 32), (pixels[..., 3] // 255).tobytes())
        image.putpalette([0, 0, 0] * 256)
    elif mode in ("RGB", "L"):
        image = Image.new("RGB", (32, 32), (1, 1, 1))
        image.paste((0, 0, 0), (8, 8, 24, 24))
        image = image.convert(mode)
    else:
        image = image.convert(mode)
    transparency = {"P": 0, "RGB": (1, 1, 1), "L": 1}.get(mode)
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "square.png", **options)
    seen = read_image(tmp_path / "square.png", 32, channels)
    assert seen[:, 0, 0].tolist() == [255] * channels
    assert seen[:, 16, 16].tolist() == [0] * channels


def test_16_bits_keep_their_shades(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 32, dtype=np.uint16)[None].repeat(32, 0)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    seen = read_image(tmp_path / "deep.png", 32, 1)[0, 0].int()
    assert (seen - torch.from_numpy((ramp[0] >> 8).astype(np.int32))).abs().max() <= 1


@pytest.mark.parametrize("suffix", [s for s in sorted(SUFFIXES) if s not in (".pbm", ".pgm")])
def test_every_suffix_can_be_read(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"red{suffix.upper()}"
    Image.new("RGB", (40, 40), "red").save(file, **({"format": "JPEG"} if suffix == ".jpe" else {}))
    seen = read_image(file, 8, 3).float().mean((1, 2))
    assert (seen - torch.tensor([255.0, 0.0, 0.0])).abs().max() < 8


def too_many_pixels() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    size = (20_000).to_bytes(4, "big") + (10_000).to_bytes(4, "big")
    header = b"IHDR" + size + b"\x08\x00\x00\x00\x00"
    return file.getvalue()[:12] + header + zlib.crc32(header).to_bytes(4, "big") + file.getvalue()[33:]


def too_much_text() -> bytes:
    file, facts = io.BytesIO(), PngImagePlugin.PngInfo()
    facts.add_text("note", "a" * 2_000_000, zip=True)
    Image.new("L", (8, 8)).save(file, "PNG", pnginfo=facts)
    return file.getvalue()


def cut() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    return file.getvalue()[:200]


UNREADABLE = "is not a readable picture: "


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (too_many_pixels(), "has too many pixels: make it smaller"),
        (too_much_text(), UNREADABLE),
        (cut(), UNREADABLE),
        (b"", UNREADABLE),
        (b"no picture", UNREADABLE),
    ],
    ids=["pixels", "text", "cut", "empty", "no-picture"],
)
def test_a_picture_that_cannot_be_read_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pets", {"cat": 6})
    (root / "cat" / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"pets/cat/bad\.png {reason}"):
        load_data("folder", root)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".cache", ".Trash-0", *sorted(LITTER)])
def test_litter_is_no_class_and_no_picture(name: str, tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pets", {"cat": 2, "dog": 2})
    expected = load_data("folder", root)
    for folder in (root / name, root / "cat" / name):
        shutil.copytree(root / "dog", folder)
    (root / "cat" / "._0.png").write_bytes(b"\0\5\x16\7")
    (root / "cat" / ".DS_Store").write_bytes(b"\0")
    found = load_data("folder", root)
    assert found.class_names == ["cat", "dog"]
    assert torch.equal(found.train.images, expected.train.images)
    assert found.left_out == ""


def test_pictures_of_sub_folders_belong_to_the_class(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pets", {"cat": 2, "dog": 2})
    shutil.copytree(root / "dog", root / "cat" / "2019" / "summer")
    assert load_data("folder", root).train.labels.tolist() == [0, 0, 0, 0, 1, 1]


def test_what_is_left_out_is_counted_by_suffix(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "pets", {"cat": 2})
    for name in ("a.heic", "b.HEIC", "notes.txt", "Makefile"):
        (root / "cat" / name).write_text("")
    (root / "loose.png").write_bytes((root / "cat" / "0.png").read_bytes())
    left_out = load_data("folder", root).left_out
    assert left_out == "5 files that are no pictures of a class (2 .heic, 1 without a suffix, 1 .png, 1 .txt)"


def test_classes_stand_in_natural_order(tmp_path: Path) -> None:
    names = ["10", "2", "0", "11", "1"]
    found = read_image_folder(write_pictures(tmp_path / "digits", dict.fromkeys(names, 1)), 8, 3)
    assert found.class_names == ["0", "1", "2", "10", "11"]
    assert sorted(["b10", "B9", "a", "10", "b"], key=natural_key) == ["10", "a", "b", "B9", "b10"]


def test_names_are_composed(tmp_path: Path) -> None:
    name = "caf\u00e9"
    folder = unicodedata.normalize("NFD", name)
    found = read_image_folder(write_pictures(tmp_path / "places", {folder: 1}), 8, 3)
    assert found.class_names == [name]
    assert class_key(folder) == class_key(ModelConfig("dit", {}, class_names=found.class_names).class_names[0])


@pytest.mark.parametrize(("a", "b"), [("Cat", "cat"), ("cat", " cat "), ("caf\u00e9", "cafe\u0301")])
def test_names_that_cannot_be_told_apart_are_refused(a: str, b: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pets: class names .* are the same but for case, blanks or Unicode form"):
        load_data("folder", write_pictures(tmp_path / "pets", {a: 1, b: 1}))


def test_a_class_without_pictures_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dog holds no picture: a class needs at least one of \.avif"):
        load_data("folder", write_pictures(tmp_path / "pets", {"cat": 6, "dog": 0}))
