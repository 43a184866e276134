"""Pictures that clients send: files of a model's own size, to start from or to complete."""

import base64
import binascii
import io
import struct
from typing import Any

import numpy as np
from PIL import Image

from service.errors import InvalidRequest, in_bytes
from service.wire.messages import ModelCard

MAX_FILE = 4 * 1024 * 1024  # bytes
FORMATS = ("PNG", "WEBP", "JPEG")
GRAY, COLOUR = ("1", "L"), ("RGB", "P")  # modes of 8 bits or less; a palette has colours
WITH_ALPHA = {"LA": "L", "La": "L", "PA": "RGB", "RGBA": "RGB", "RGBa": "RGB"}  # the mode without alpha, by mode
UNREADABLE = "must be a PNG, WebP or JPEG file in base64"
HALF = 128  # mask values below it count as black, alpha values below it as transparent


def decode(value: Any) -> Any:
    """The bytes of a file in base64, which may be a data URL as browsers write it.

    Raises:
        ValueError: not base64; the message is meant for the client.
    """
    if isinstance(value, bytes) or value is None:
        return value
    if not isinstance(value, str):
        raise ValueError(UNREADABLE)
    text = value.partition(",")[2] if value.startswith("data:image/") else value
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(UNREADABLE) from error


def read_known(card: ModelCard, image: bytes, mask: bytes | None, transparent: bool = False) -> tuple[bytes, bytes]:
    """Decode an image and its mask: bytes of [H, W, C] uint8, and of [H, W] bool, true where pixels may change.

    Args:
        mask: a picture that is white where the image may change. Without one the second result is b"": all may.
        transparent: mask or image are transparent where the image may change, as in the API of OpenAI.

    Raises:
        InvalidRequest: names the field, image or mask, and what is wrong with it.
    """
    picture = _open("image", image, card)
    masked_by = ("image", picture) if mask is None else ("mask", _open("mask", mask, card))
    if mask is None and not (transparent and _has_alpha(picture)):
        free = b""
    elif transparent:
        free = _free(masked_by[0], _alpha(*masked_by) < HALF, "transparent")
    else:
        free = _free("mask", np.asarray(_opaque(*masked_by).convert("L")) >= HALF, "white")
    if not transparent or mask is not None:
        picture = _opaque("image", picture)
    return _pixels(picture, card), free


def _open(field: str, data: bytes, card: ModelCard) -> Image.Image:
    """Open a picture; its pixels are decoded only after its size is checked, against decompression bombs."""
    _, height, width = card.image_shape
    if len(data) > MAX_FILE:
        raise InvalidRequest.field(field, f"must have at most {in_bytes(MAX_FILE)}, not {len(data)} bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.size != (width, height):
                size = f"{picture.width} x {picture.height}"
                raise InvalidRequest.field(field, f"must be {width} x {height} pixels, not {size}")
            if getattr(picture, "n_frames", 1) > 1:
                raise InvalidRequest.field(field, "must be one picture, not an animation")
            if picture.mode not in (*GRAY, *COLOUR, *WITH_ALPHA):
                raise InvalidRequest.field(
                    field, f"must be gray or RGB with 8 bits a channel, not of mode {picture.mode}"
                )
            picture.load()
            return picture.convert("RGBA") if "transparency" in picture.info else picture.copy()
    except Image.DecompressionBombError as error:  # before its size is known
        raise InvalidRequest.field(field, f"must be {width} x {height} pixels, and has far more") from error
    except (OSError, SyntaxError, ValueError, IndexError, TypeError, struct.error) as error:
        raise InvalidRequest.field(field, "cannot be read: send a PNG, WebP or JPEG file that is whole") from error


def _has_alpha(picture: Image.Image) -> bool:
    return picture.mode in WITH_ALPHA and bool((np.asarray(picture.getchannel("A")) < HALF).any())


def _alpha(field: str, picture: Image.Image) -> np.ndarray:
    if picture.mode not in WITH_ALPHA:
        raise InvalidRequest.field(field, "must be transparent where the image may change")
    return np.asarray(picture.getchannel("A"))


def _opaque(field: str, picture: Image.Image) -> Image.Image:
    if picture.mode not in WITH_ALPHA:
        return picture
    if (np.asarray(picture.getchannel("A")) < 255).any():
        raise InvalidRequest.field(field, "must not be transparent: a mask says what may change")
    return picture.convert(WITH_ALPHA[picture.mode])


def _free(field: str, free: np.ndarray, colour: str) -> bytes:
    if not free.any():
        raise InvalidRequest.field(field, f"nothing may change: make a part of it {colour}")
    return free.tobytes()


def _pixels(picture: Image.Image, card: ModelCard) -> bytes:
    """Bytes of [H, W, C] uint8. A gray model refuses colours, and a colour model gets gray in all channels."""
    if card.image_shape[0] == 3:
        return np.asarray(picture.convert("RGB")).tobytes()
    pixels = np.asarray(picture.convert("RGB" if picture.mode in (*COLOUR, "RGBA") else "L"))
    if pixels.ndim == 3:
        if (pixels != pixels[:, :, :1]).any():
            raise InvalidRequest.field("image", f"must be gray, as the pictures of {card.name} are")
        pixels = pixels[:, :, 0]
    return np.ascontiguousarray(pixels).tobytes()
