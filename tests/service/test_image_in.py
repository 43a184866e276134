"""Requests that bring an image, over a real socket and with OpenAI's own client."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from models.checkpoint import load_checkpoint
from models.samplers import MIN_STRENGTH
from models.sampling import Guidance, Known, sample, to_uint8
from service.web import schemas, uploads
from service.web.images import write_png
from tests.service.conftest import Running
from tests.service.pictures import decoded, difference, pixels, png, recipe

openai = pytest.importorskip("openai", reason="needs openai")

IMAGE = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
FREE = np.random.default_rng(2).random((8, 8)) < 0.5
MASK = np.repeat((FREE * np.uint8(255))[:, :, None], 3, 2)


def text(picture: np.ndarray) -> str:
    return base64.b64encode(write_png(picture, {})).decode()


def post(server: Running, accept: str = "image/png", **fields: Any) -> httpx.Response:
    body = {"model": "dit", "class": "cat", "seed": 5, "image": text(IMAGE)} | fields
    return server.client.post("/generate", json=body, headers={"Accept": accept})


def loop(checkpoints: Path, model: str, free: np.ndarray | None, strength: float, label: int = 0) -> np.ndarray:
    """The image by the plain loop, with the fields of HOW."""
    network, config = load_checkpoint(checkpoints / model)
    known = Known(
        torch.from_numpy(IMAGE).permute(2, 0, 1).float() / 127.5 - 1,
        None if free is None else torch.from_numpy(free),
    )
    table = config.table("dpmpp_2m", 6, strength=strength)
    labels, seeds = torch.tensor([label]), torch.tensor([5])
    guidance = Guidance(2.0 if label < 3 else 1.0)
    with torch.inference_mode():
        x = sample(network, table, labels, seeds, config.image_shape, guidance=guidance, null_label=3, known=known)
    picture = to_uint8(x[0]).permute(1, 2, 0).numpy()
    return picture if free is None else np.where(free[:, :, None], picture, IMAGE)


HOW = {"steps": 6, "guidance": 2, "sampler": "dpmpp_2m", "spacing": "trailing"}
HOW |= {"guidance_low": 0, "guidance_high": 1}


@pytest.mark.parametrize("model", ["dit", "unet"])
def test_pixels_are_those_of_the_plain_loop(server: Running, checkpoints: Path, model: str) -> None:
    changed = pixels(post(server, model=model, strength=0.4, **HOW))
    assert difference(changed, loop(checkpoints, model, None, 0.4)) <= 1
    completed = pixels(post(server, model=model, mask=text(MASK), **HOW))
    assert difference(completed, loop(checkpoints, model, FREE, 1.0)) <= 1
    both = pixels(post(server, model=model, mask=text(MASK), strength=0.7, **HOW))
    assert difference(both, loop(checkpoints, model, FREE, 0.7)) <= 1


def test_without_a_class_the_null_class_is_drawn(server: Running, checkpoints: Path) -> None:
    body = {"model": "dit", "seed": 5, "image": text(IMAGE), "strength": 0.4} | HOW | {"guidance": 1}
    answer = server.client.post("/generate", json=body, headers={"Accept": "application/json"}).json()
    assert (answer["class"], answer["class_index"], answer["guidance"], answer["strength"]) == (None, None, 1, 0.4)
    assert difference(decoded(answer["images"][0]["png_base64"]), loop(checkpoints, "dit", None, 0.4, label=3)) <= 1


@pytest.mark.parametrize("form", ["png", "webp", "npy"])
def test_what_is_kept_has_the_bytes_of_the_image(server: Running, form: str) -> None:
    response = post(server, mask=text(MASK), format=form, n=4)
    if form == "npy":
        sheet = np.load(io.BytesIO(response.content))
    else:
        sheet = pixels(response).reshape(2, 8, 2, 8, 3).swapaxes(1, 2).reshape(4, 8, 8, 3)
    for picture in sheet:
        assert (picture[~FREE] == IMAGE[~FREE]).all()
        assert (picture[FREE] != IMAGE[FREE]).any()
    assert len({picture.tobytes() for picture in sheet}) == 4  # every seed completes it in its own way


def test_full_strength_is_the_plain_request_bit_by_bit(server: Running) -> None:
    query = {"model": "dit", "class": "cat", "seed": 5, "deterministic": True, "format": "npy"}
    plain = server.client.post("/generate", json=query)
    with_image = post(server, strength=1.0, deterministic=True, format="npy")
    assert plain.status_code == with_image.status_code == 200
    assert plain.content == with_image.content


def test_previews_show_what_is_kept(server: Running) -> None:
    response = post(server, accept="text/event-stream", mask=text(MASK), steps=6, preview=3)
    pictures = [line for line in response.text.splitlines() if '"b64_json"' in line]
    assert len(pictures) == 4
    for line in pictures:
        encoded = line.partition('"b64_json": "')[2].partition('"')[0]
        assert (decoded(encoded)[~FREE] == IMAGE[~FREE]).all()


def test_a_png_tells_of_the_image_that_it_came_from(server: Running) -> None:
    told = recipe(post(server, strength=0.25).content)
    assert told["strength"] == "0.25"
    assert len(told["image_sha256"]) == 64
    assert "mask_sha256" not in told
    assert "mask_sha256" in recipe(post(server, mask=text(MASK)).content)


def test_a_link_may_hold_a_small_image(server: Running) -> None:
    query = {"model": "dit", "class": "cat", "seed": 5, "deterministic": "true"}
    query |= {"image": text(IMAGE), "strength": 0.4}
    first = server.client.get("/generate", params=query)
    assert first.status_code == 200
    assert first.content == server.client.get("/generate", params=query).content
    other = server.client.get("/generate", params=query | {"image": text(255 - IMAGE)})
    assert other.headers["etag"] != first.headers["etag"]
    assert other.content != first.content


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": None, "mask": text(MASK)}, "mask: needs an image"),
        ({"image": None, "strength": 0.5}, "strength: needs an image"),
        ({"image": None, "class": None}, "class: required: one of"),
        ({"class": None, "guidance": 2}, "guidance: leads to a class, and none is named"),
        ({"strength": 0}, "strength: must be a number from 0.01 to 1, not 0"),
        ({"strength": 1.5}, "strength: must be a number from 0.01 to 1, not 1.5"),
        ({"image": 7}, "image: must be a PNG, WebP or JPEG file in base64"),
        ({"image": "%"}, "image: must be a PNG, WebP or JPEG file in base64"),
        ({"mask": text(MASK[:4])}, "mask: must be 8 x 8 pixels, not 8 x 4"),
    ],
    ids=["mask", "strength", "class", "guidance", "zero", "much", "number", "base64", "size"],
)
def test_a_wrong_field_is_named(server: Running, fields: dict[str, Any], message: str) -> None:
    response = post(server, **fields)
    assert response.status_code == 422
    assert response.json()["detail"].startswith(message)


def test_the_least_strength_is_that_of_the_tables() -> None:
    assert schemas.MIN_STRENGTH == MIN_STRENGTH


def test_files_may_be_larger_than_other_bodies(server: Running) -> None:
    padded = base64.b64encode(png(IMAGE) + bytes(300_000)).decode()  # decoders stop at the end of the picture
    assert pixels(post(server, image=padded)).shape == (8, 8, 3)
    headers = {"Content-Type": "application/json"}
    response = server.client.post("/v2/models/dit/infer", content=bytes(64 * 1024 + 1), headers=headers)
    assert response.status_code == 413


@pytest.mark.parametrize("api", ["generate", "openai"])
def test_a_large_file_holds_up_no_other_request(server: Running, monkeypatch: pytest.MonkeyPatch, api: str) -> None:
    """64 KiB of PNG can hold 64 MiB of compressed text, and take half a second."""
    begun, go_on, read = Event(), Event(), uploads.Image.open

    def slow(*args: Any, **options: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return read(*args, **options)

    monkeypatch.setattr(uploads.Image, "open", slow)
    file = png(IMAGE) + bytes(10_000)
    form: dict[str, Any] = {"data": {"model": "dit", "prompt": "cat"}, "files": {"image": file}}
    body: dict[str, Any] = {"json": {"model": "dit", "class": "cat", "image": base64.b64encode(file).decode()}}
    with ThreadPoolExecutor(1) as pool:
        path, sent = ("/generate", body) if api == "generate" else ("/v1/images/edits", form)
        answer = pool.submit(httpx.post, f"{server.url}{path}", timeout=60, **sent)
        try:
            assert begun.wait(60)
            assert server.client.get("/livez", timeout=10).status_code == 200
        finally:
            go_on.set()
        assert answer.result().status_code == 200


CLEAR = np.dstack([IMAGE, np.where(FREE, 0, 255).astype(np.uint8)])


@pytest.mark.parametrize("masked", [False, True], ids=["alpha of the image", "mask"])
def test_edits_complete_what_is_transparent(openai_client: Any, server: Running, masked: bool) -> None:
    files = {"image": png(IMAGE), "mask": png(CLEAR)} if masked else {"image": png(CLEAR)}
    extra = {"seed": 5, "num_inference_steps": 6, "guidance_scale": 2.0}
    answer = openai_client.images.edit(model="dit", prompt="cat", n=2, size="8x8", extra_body=extra, **files)
    first, second = (decoded(image.b64_json) for image in answer.data)
    assert (first[~FREE] == IMAGE[~FREE]).all()
    assert (second[~FREE] == IMAGE[~FREE]).all()
    assert (first == pixels(post(server, mask=text(MASK), steps=6, guidance=2))).all()


def test_an_edit_without_a_mask_changes_all_of_it(openai_client: Any, server: Running) -> None:
    extra = {"seed": 5, "strength": 0.3}
    answer = openai_client.images.edit(model="dit", prompt="cat", image=png(IMAGE), extra_body=extra)
    assert (decoded(answer.data[0].b64_json) == pixels(post(server, strength=0.3))).all()


def test_one_image_may_stand_in_a_list(openai_client: Any) -> None:
    """As in the examples of OpenAI; the client calls the field image[] then."""
    how: dict[str, Any] = {"model": "dit", "prompt": "dog", "extra_body": {"seed": 5, "deterministic": True}}
    first, again = (openai_client.images.edit(image=image, **how) for image in (png(IMAGE), [png(IMAGE)]))
    assert first.data[0].b64_json == again.data[0].b64_json


def test_an_edit_streams(openai_client: Any) -> None:
    asked: dict[str, Any] = {"stream": True, "partial_images": 2, "extra_body": {"num_inference_steps": 6}}
    *partial, last = openai_client.images.edit(model="dit", prompt="cat", image=png(CLEAR), **asked)
    assert [event.type for event in partial] == ["image_edit.partial_image"] * 2
    assert last.type == "image_edit.completed"
    assert (decoded(last.b64_json)[~FREE] == IMAGE[~FREE]).all()


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # OpenAI has no model left that it is for
def test_variations_need_no_prompt(openai_client: Any, server: Running) -> None:
    answer = openai_client.images.create_variation(model="dit", image=png(IMAGE), n=2, extra_body={"seed": 5})
    first, second = (decoded(image.b64_json) for image in answer.data)
    assert (first != second).any()
    body = {"model": "dit", "seed": 5, "image": text(IMAGE)}
    assert (first == pixels(server.client.post("/generate", json=body))).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": png(IMAGE[:4])}, "image: must be 8 x 8 pixels, not 8 x 4"),
        ({"image": png(IMAGE), "mask": png(MASK)}, "mask: must be transparent where the image may change"),
        ({"image": [png(IMAGE), png(IMAGE)]}, "image: given more than once"),
        ({"image": png(IMAGE), "n": 17}, "n: must be a whole number from 1 to 16, not 17"),
        (
            {"image": png(IMAGE), "extra_body": {"num_inference_steps": "many"}},
            "num_inference_steps: must be a whole",
        ),
        ({"image": png(IMAGE), "extra_body": {"colour": "red"}}, "colour: unknown field"),
    ],
    ids=["size", "opaque", "two", "n", "steps", "unknown"],
)
def test_a_wrong_field_of_a_form_is_named(openai_client: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        openai_client.images.edit(**{"model": "dit", "prompt": "cat"} | fields)


FORM = {"Content-Type": "multipart/form-data; boundary=x"}
END = b"--x--\r\n"


def part(name: str, value: bytes = b"1") -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations"])
@pytest.mark.parametrize(
    ("headers", "body", "message"),
    [
        ({"Content-Type": "application/json"}, b"{}", "body: send a form"),
        ({"Content-Type": "multipart/form-data"}, b"", "body: send a form"),
        (FORM, b"", "body: not a valid form"),
        (FORM, b"junk", "body: not a valid form"),
        (FORM, part("model", b"dit"), "body: not a valid form: it has no end"),
        (FORM, 2 * part("n") + END, "n: given more than once"),
        (FORM, b"".join(part(str(i)) for i in range(90)) + END, "body: has more than"),
        (FORM, part("model", b"\xff") + END, "body: not a valid form"),
    ],
    ids=["json", "no-boundary", "empty", "junk", "cut", "twice", "many", "latin"],
)
def test_a_body_that_is_no_form_is_refused(
    server: Running, path: str, headers: dict[str, str], body: bytes, message: str
) -> None:
    response = server.client.post(path, content=body, headers=headers)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"].startswith(message)
