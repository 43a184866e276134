"""Pixels to bytes. Runs in worker threads, off the event loop and off the engine thread."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

MEDIA_TYPES = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
    "npy": "application/x-npy",
    "json": "application/json",
}


def encode(
    images: list[np.ndarray], form: str, text: Mapping[str, str] | None = None, quality: int | None = None
) -> bytes:
    """One body for all images of a request.

    Args:
        images: n arrays [H, W, C] uint8, C 1 or 3.
        form: png, webp or jpeg, where several images become one near-square grid; npy, an array [n, H, W, C] uint8.
        text: written into a PNG, one text chunk a key; the other formats leave it out.
        quality: 0..100 of webp and jpeg. Default: webp without loss, jpeg 95.
    """
    buffer = io.BytesIO()
    if form == "npy":
        np.save(buffer, np.stack(images), allow_pickle=False)
        return buffer.getvalue()
    options: dict[str, dict[str, Any]] = {
        "png": {"pnginfo": _text_chunks(text or {})},
        "webp": {"lossless": quality in (None, 100)} | ({} if quality is None else {"quality": quality}),
        # every pixel keeps its colour: Pillow's default stores one colour for four pixels
        "jpeg": {"quality": 95 if quality is None else quality, "subsampling": 0},
    }
    picture = Image.fromarray(grid(images).squeeze())
    picture.save(buffer, form, **options[form])
    return buffer.getvalue()


def encode_base64(
    images: list[np.ndarray],
    form: str = "png",
    texts: Sequence[Mapping[str, str]] | None = None,
    quality: int | None = None,
) -> list[str]:
    """Each image by itself in base64, as JSON answers and events carry it; texts has one for each."""
    pairs = zip(images, texts or [{}] * len(images), strict=True)
    return [base64.b64encode(encode([image], form, text, quality)).decode() for image, text in pairs]


def _text_chunks(text: Mapping[str, str]) -> PngInfo:
    """tEXt chunks; iTXt, which holds UTF-8, where a value does not fit into Latin-1."""
    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)
    return chunks


def grid(images: list[np.ndarray]) -> np.ndarray:
    """Row by row into the smallest near-square grid; cells that are left over stay black."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height, width, channels = images[0].shape
    sheet = np.zeros((rows, height, columns, width, channels), dtype=np.uint8)
    for i, image in enumerate(images):
        sheet[i // columns, :, i % columns] = image
    return sheet.reshape(rows * height, columns * width, channels)
