"""Pictures as files: formats, grids, qualities and text."""

import asyncio
import io
import threading

import numpy as np
import pytest

from service.web.generation import encoded
from service.web.images import encode, encode_base64, grid
from tests.service.pictures import decoded, difference, opened, recipe

RNG = np.random.default_rng(0)


def images(n: int, channels: int = 3) -> list[np.ndarray]:
    return list(RNG.integers(0, 256, (n, 8, 6, channels), dtype=np.uint8))


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
@pytest.mark.parametrize("form", ["png", "webp"])
def test_lossless_formats_keep_every_pixel(form: str, channels: int) -> None:
    [image] = images(1, channels)
    found = opened(encode([image], form)).convert("L" if channels == 1 else "RGB")
    assert np.array_equal(np.array(found), image.squeeze())


@pytest.mark.parametrize(("side", "in_a_thread"), [(32, False), (64, True)])
def test_large_pictures_do_not_hold_up_the_loop(side: int, in_a_thread: bool) -> None:
    async def main() -> int:
        return await encoded(lambda _: threading.get_ident(), [np.zeros((side, side, 3), np.uint8)])

    assert (asyncio.run(main()) != threading.get_ident()) == in_a_thread


def test_jpeg_is_close() -> None:
    smooth = np.full((16, 16, 3), (200, 30, 90), dtype=np.uint8)
    assert difference(decoded(encode([smooth], "jpeg")), smooth) < 8


@pytest.mark.parametrize(("n", "shape"), [(1, (8, 6)), (2, (8, 12)), (3, (16, 12)), (5, (16, 18)), (16, (32, 24))])
def test_grid_places_images_row_by_row(n: int, shape: tuple[int, int]) -> None:
    tiles = images(n)
    sheet = grid(tiles)
    assert sheet.shape == (*shape, 3)
    columns = shape[1] // 6
    for i, tile in enumerate(tiles):
        top, left = i // columns * 8, i % columns * 6
        assert np.array_equal(sheet[top : top + 8, left : left + 6], tile)
    assert sheet.sum() == sum(int(tile.sum()) for tile in tiles)  # what is left over is black


def test_npy_keeps_the_list() -> None:
    tiles = images(3)
    assert np.array_equal(np.load(io.BytesIO(encode(tiles, "npy")), allow_pickle=False), np.stack(tiles))


def test_base64_is_one_png_an_image() -> None:
    tiles = images(2)
    assert np.array_equal(np.stack([decoded(text) for text in encode_base64(tiles)]), np.stack(tiles))


def test_jpeg_keeps_the_colour_of_every_pixel() -> None:
    """Stripes of one pixel, which Pillow's default (4:2:0) turns purple."""
    stripes = np.zeros((16, 16, 3), dtype=np.uint8)
    stripes[:, ::2, 0], stripes[:, 1::2, 2] = 255, 255
    assert np.abs(decoded(encode([stripes], "jpeg")).astype(int) - stripes).mean() < 8


@pytest.mark.parametrize("form", ["webp", "jpeg"])
def test_a_higher_quality_gives_a_larger_file(form: str) -> None:
    [image] = images(1)
    sizes = [len(encode([image], form, quality=quality)) for quality in (0, 50, 100)]
    assert sizes == sorted(set(sizes))


def test_webp_of_quality_100_is_lossless() -> None:
    [image] = images(1)
    assert np.array_equal(decoded(encode([image], "webp", quality=100)), image)


def test_text_is_in_a_png_and_in_no_other_format() -> None:
    [image] = images(1)
    text = {"class": "cat", "model": "日本"}  # the second one is no Latin-1
    assert recipe(encode([image], "png", text)) == text
    assert b"class" in encode([image], "png", text)  # tEXt is not compressed
    for form in ("webp", "jpeg", "npy"):
        assert encode([image], form, text) == encode([image], form)
