"""Pixels to bytes. Runs in worker threads, off the event loop and off the engine thread."""

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image

MEDIA_TYPES = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
    "npy": "application/x-npy",
    "json": "application/json",
}


def encode(images: list[np.ndarray], form: str) -> bytes:
    """One body for all images of a request.

    Args:
        images: n arrays [H, W, C] uint8, C 1 or 3.
        form: png, webp (lossless) or jpeg, where several images become one near-square grid; npy, an array
            [n, H, W, C] uint8.
    """
    buffer = io.BytesIO()
    if form == "npy":
        np.save(buffer, np.stack(images), allow_pickle=False)
        return buffer.getvalue()
    options: dict[str, dict[str, Any]] = {"webp": {"lossless": True}, "jpeg": {"quality": 95}}
    picture = Image.fromarray(grid(images).squeeze())
    picture.save(buffer, form, **options.get(form, {}))
    return buffer.getvalue()


def encode_base64(images: list[np.ndarray], form: str = "png") -> list[str]:
    """Each image by itself in base64, as JSON answers and events carry it."""
    return [base64.b64encode(encode([image], form)).decode() for image in images]


def grid(images: list[np.ndarray]) -> np.ndarray:
    """Row by row into the smallest near-square grid; cells that are left over stay black."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height, width, channels = images[0].shape
    sheet = np.zeros((rows, height, columns, width, channels), dtype=np.uint8)
    for i, image in enumerate(images):
        sheet[i // columns, :, i % columns] = image
    return sheet.reshape(rows * height, columns * width, channels)
