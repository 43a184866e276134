"""Encode pixels as files. generation.py decides whether that runs on the event loop or in a thread."""

import base64
import io
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

ANIMATIONS = {"apng": "image/apng", "webp-animation": "image/webp"}
MEDIA_TYPES = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
    "npy": "application/x-npy",
    "npz": "application/x-npz",
    "json": "application/json",
    **ANIMATIONS,
}
# Milliseconds: of all frames together, the least and the most of one frame, and of the last frame.
ANIMATION_MS, FRAME_MS, LAST_MS = 3000, (40, 250), 1500


def encode(
    images: list[np.ndarray],
    form: str,
    text: Mapping[str, str] | None = None,
    quality: int | None = None,
    columns: int | None = None,
) -> bytes:
    """One body for all images of a request.

    Args:
        images: n arrays [H, W, C] uint8, C 1 or 3.
        form: png, webp or jpeg, where several images become one near-square grid; npy, an array [n, H, W, C] uint8.
        text: written into a PNG, one text chunk a key; the other formats leave it out.
        columns: of the grid; default: near-square.
        quality: 0..100 of webp and jpeg. Default: webp without loss, jpeg 95.
    """
    if form == "png":
        return write_png(grid(images, columns), text or {})
    buffer = io.BytesIO()
    if form == "npy":
        np.save(buffer, np.stack(images), allow_pickle=False)
        return buffer.getvalue()
    options: dict[str, dict[str, Any]] = {
        "webp": {"lossless": quality in (None, 100)} | ({} if quality is None else {"quality": quality}),
        # every pixel keeps its colour: Pillow's default stores one colour for four pixels
        "jpeg": {"quality": 95 if quality is None else quality, "subsampling": 0},
    }
    picture = Image.fromarray(grid(images, columns).squeeze())
    picture.save(buffer, form, **options[form])
    return buffer.getvalue()


def encode_base64(
    images: list[np.ndarray],
    form: str = "png",
    texts: Sequence[Mapping[str, str]] | None = None,
    quality: int | None = None,
) -> list[str]:
    """Encode each image by itself, in base64, for JSON answers and events; texts: one mapping an image."""
    pairs = zip(images, texts or [{}] * len(images), strict=True)
    return [base64.b64encode(encode([image], form, text, quality)).decode() for image, text in pairs]


def write_png(sheet: np.ndarray, text: Mapping[str, str], animation: Sequence[bytes] = ()) -> bytes:
    """A PNG without row filters at zlib's fastest level: for digits 2 to 3 % larger than Pillow's, but 3 x as fast.

    sheet: [H, W, C] uint8. animation: chunks; the first one is written before the image data, the others after it.
    https://www.w3.org/TR/png-3/
    """
    height, width, channels = sheet.shape
    header = struct.pack(">2I5B", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    chunks = [_chunk(b"IHDR", header), *(_text_chunk(key, value) for key, value in text.items()), *animation[:1]]
    picture = _chunk(b"IDAT", _compressed(sheet))
    return b"".join([b"\x89PNG\r\n\x1a\n", *chunks, picture, *animation[1:], _chunk(b"IEND", b"")])


def encode_animation(sheets: list[np.ndarray], form: str, text: Mapping[str, str]) -> bytes:
    """A lossless animation of pictures [H, W, C] uint8 that loops for ever; the last one is shown longer.

    Programs without APNG support, and thumbnails, show the last picture.

    Args:
        form: apng or webp-animation.
        text: written into a PNG, as encode does.
    """
    usual = max(FRAME_MS[0], min(FRAME_MS[1], ANIMATION_MS // len(sheets)))
    milliseconds = [usual] * (len(sheets) - 1) + [LAST_MS]
    if form == "apng":
        return write_png(sheets[-1], text, list(_animation_chunks(sheets, milliseconds)))
    first, *others = (Image.fromarray(sheet.squeeze()) for sheet in sheets)
    buffer = io.BytesIO()
    options = {"duration": milliseconds, "loop": 0, "lossless": True, "method": 0}
    first.save(buffer, "webp", save_all=True, append_images=others, **options)
    return buffer.getvalue()


def _animation_chunks(sheets: list[np.ndarray], milliseconds: list[int]) -> Iterator[bytes]:
    """The acTL chunk, then fcTL and fdAT of each frame, with sequence numbers; each frame is a whole picture."""
    yield _chunk(b"acTL", struct.pack(">2I", len(sheets), 0))
    for number, (sheet, shown) in enumerate(zip(sheets, milliseconds, strict=True)):
        height, width, _ = sheet.shape
        yield _chunk(b"fcTL", struct.pack(">5I2H2B", 2 * number, width, height, 0, 0, shown, 1000, 0, 0))
        yield _chunk(b"fdAT", struct.pack(">I", 2 * number + 1) + _compressed(sheet))


def _compressed(sheet: np.ndarray) -> bytes:
    height, width, channels = sheet.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # first byte of a row: filter type 0, none
    rows[:, 1:] = sheet.reshape(height, -1)
    return zlib.compress(rows.tobytes(), 1)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _text_chunk(key: str, value: str) -> bytes:
    """A tEXt chunk, or iTXt in UTF-8 if the value does not fit into Latin-1."""
    name = key.encode("latin-1") + b"\0"
    try:
        return _chunk(b"tEXt", name + value.encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", name + b"\0\0\0\0" + value.encode())


def grid(images: list[np.ndarray], columns: int | None = None) -> np.ndarray:
    """Place images [H, W, C] row by row in one [rows * H, columns * W, C]; unused cells stay black.

    columns: default: those of the smallest near-square grid.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height, width, channels = images[0].shape
    sheet = np.zeros((rows, height, columns, width, channels), dtype=np.uint8)
    for i, image in enumerate(images):
        sheet[i // columns, :, i % columns] = image
    return sheet.reshape(rows * height, columns * width, channels)
