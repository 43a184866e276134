"""Pictures that clients send: what is read from them, and every sentence with which they are refused."""

import base64
import io
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidRequest
from service.web.uploads import MAX_FILE, decode, read_known
from service.wire.messages import ModelCard
from tests.service.pictures import difference

H, W = 6, 8
RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (H, W, 3), np.uint8)
GRAYS = RNG.integers(0, 256, (H, W), np.uint8)
WHITE = GRAYS >= 128


def card(channels: int = 3) -> ModelCard:
    return ModelCard(
        name="dit", architecture="dit", parameters=1, image_shape=(channels, H, W), class_names=["a"], samplers={},
        sampling={}, sha256="", device="cpu", dtype="float32", hardware="cpu", simulated=False, build="",
    )  # fmt: skip


def file(picture: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def with_alpha(colours: np.ndarray, opaque: np.ndarray) -> np.ndarray:
    return np.dstack([colours, np.where(opaque, 255, 0).astype(np.uint8)])


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_bytes_are_those_of_the_file(form: str) -> None:
    assert read_known(card(), file(COLOURS, form, lossless=True), None) == (COLOURS.tobytes(), b"")
    grays = np.repeat(GRAYS[:, :, None], 3, 2).tobytes()
    assert read_known(card(), file(GRAYS), None) == (grays, b"")
    assert read_known(card(), file(Image.fromarray(GRAYS).convert("P")), None)[0] == grays
    assert read_known(card(), file(with_alpha(COLOURS, WHITE | True)), None)[0] == COLOURS.tobytes()


def test_a_gray_model_takes_gray_pictures() -> None:
    for picture in (GRAYS, np.repeat(GRAYS[:, :, None], 3, 2)):
        assert read_known(card(1), file(picture), None) == (GRAYS.tobytes(), b"")
    black = Image.fromarray(WHITE)
    assert black.mode == "1"
    assert read_known(card(1), file(black), None)[0] == (WHITE * np.uint8(255)).tobytes()
    with pytest.raises(InvalidRequest, match="image: must be gray, as the pictures of dit are"):
        read_known(card(1), file(COLOURS), None)


@pytest.mark.parametrize("chunk", [b"", b"x"], ids=["empty", "one byte"])
def test_a_broken_chunk_behind_the_pixels_is_refused(chunk: bytes) -> None:
    """Pillow raises an IndexError for it."""
    name, whole = b"iCCP" + chunk, file(COLOURS)
    broken = len(chunk).to_bytes(4, "big") + name + zlib.crc32(name).to_bytes(4, "big")
    with pytest.raises(InvalidRequest, match="image: cannot be read"):
        read_known(card(), whole[:-12] + broken + whole[-12:], None)  # before IEND


def test_a_jpeg_is_read() -> None:
    smooth = np.full((H, W, 3), (200, 30, 90), np.uint8)
    pixels, _ = read_known(card(), file(smooth, "JPEG", quality=95), None)
    assert difference(np.frombuffer(pixels, np.uint8).reshape(H, W, 3), smooth) < 8


def test_white_of_a_mask_may_change() -> None:
    assert read_known(card(), file(COLOURS), file(GRAYS))[1] == WHITE.tobytes()
    assert read_known(card(), file(COLOURS), file(Image.fromarray(WHITE)))[1] == WHITE.tobytes()


def test_transparency_is_a_mask_as_in_the_api_of_openai() -> None:
    clear = file(with_alpha(COLOURS, ~WHITE))
    assert read_known(card(), clear, None, transparent=True) == (COLOURS.tobytes(), WHITE.tobytes())
    assert read_known(card(), file(COLOURS), clear, transparent=True) == (COLOURS.tobytes(), WHITE.tobytes())
    assert read_known(card(), file(COLOURS), None, transparent=True) == (COLOURS.tobytes(), b"")
    palette = Image.fromarray((GRAYS // 16).astype(np.uint8)).convert("P")
    free = np.array(palette) == 3
    assert read_known(card(), file(palette, transparency=3), None, transparent=True)[1] == free.tobytes()


BROKEN = "cannot be read: send a PNG, WebP or JPEG file that is whole"
FRAMES = [Image.fromarray(COLOURS), Image.fromarray(COLOURS[::-1])]
UNUSABLE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", BROKEN),
    "text": (b"hello", BROKEN),
    "cut": (file(COLOURS)[:-30], BROKEN),
    "gif": (file(COLOURS, "GIF"), BROKEN),
    "bmp": (file(COLOURS, "BMP"), BROKEN),
    "size": (file(COLOURS[:4]), "must be 8 x 6 pixels, not 8 x 4"),
    "bomb": (file(np.zeros((9000, 9000), np.uint8)), "must be 8 x 6 pixels, not 9000 x 9000"),
    "animation": (
        file(FRAMES[0], save_all=True, append_images=FRAMES[1:]),
        "must be one picture, not an animation",
    ),
    "16-bit": (file(GRAYS.astype(np.uint16)), "must be gray or RGB with 8 bits a channel, not of mode I;16"),
    "cmyk": (file(Image.fromarray(COLOURS).convert("CMYK"), "JPEG"), "8 bits a channel, not of mode CMYK"),
    "transparent": (file(with_alpha(COLOURS, WHITE)), "must not be transparent: a mask says what may change"),
    "large": (bytes(MAX_FILE + 1), f"must have at most 4 MiB, not {MAX_FILE + 1} bytes"),
}


@pytest.mark.parametrize(("data", "message"), UNUSABLE.values(), ids=UNUSABLE.keys())
@pytest.mark.parametrize("field", ["image", "mask"])
def test_a_file_that_cannot_be_used_is_refused(field: str, data: bytes, message: str) -> None:
    image, mask = (data, None) if field == "image" else (file(COLOURS), data)
    with pytest.raises(InvalidRequest) as caught:
        read_known(card(), image, mask)
    assert [error.field for error in caught.value.errors] == [field]
    assert message in caught.value.detail


def test_a_picture_of_many_pixels_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = file(Image.new("1", (30_000, 30_000)))
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(InvalidRequest, match="must be 8 x 6 pixels, and has far more"):
        read_known(card(), bomb, None)


@pytest.mark.parametrize("transparent", [False, True])
def test_a_mask_that_leaves_nothing_free_is_refused(transparent: bool) -> None:
    mask = (
        np.dstack([np.zeros_like(COLOURS), np.full((H, W), 255, np.uint8)]) if transparent else np.zeros_like(GRAYS)
    )
    with pytest.raises(InvalidRequest, match="mask: nothing may change: make a part of it (white|transparent)"):
        read_known(card(), file(COLOURS), file(mask), transparent)


def test_a_mask_without_transparency_is_refused_where_that_counts() -> None:
    with pytest.raises(InvalidRequest, match="mask: must be transparent where the image may change"):
        read_known(card(), file(COLOURS), file(GRAYS), transparent=True)


def test_base64_with_and_without_the_head_of_a_data_url() -> None:
    text = base64.b64encode(file(COLOURS)).decode()
    assert decode(text) == decode(f"data:image/png;base64,{text}") == file(COLOURS)
    assert decode(b"as it is") == b"as it is"
    for wrong in ("?", "abc", text + "!", text + " "):
        with pytest.raises(ValueError, match="file in base64"):
            decode(wrong)
