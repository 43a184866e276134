"""Every step of a request as an npz or as an animation, over a real socket, against the plain loop."""

import asyncio
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor

from models.checkpoint import ModelConfig, load_checkpoint
from models.sampling import Guidance, sample
from service.local import create_app
from service.web import images, recording
from service.web.recording import MAX_HELD, MOST_NUMBERS
from service.web.routes.answers import PIECE, LargeResponse
from tests.checkpoints import TINY, write_checkpoint
from tests.service import pictures
from tests.service.conftest import Running, running, tiny_settings
from tests.service.networks import Fragile, Slow, entry, simulated
from tests.service.pictures import pixels
from tests.service.test_image_in import FREE, IMAGE, MASK, text
from tests.waiting import wait_until

TOLERANCE = 2e-5  # as between the engine and the plain loop, see tests/service/engine/test_mixed_batch.py
HOW: dict[str, Any] = {"model": "dit", "class": "dog", "n": 2, "seed": 5, "steps": 6, "guidance": 2}
BRIEF = httpx.Timeout(60, read=0.2)  # for an answer that takes two seconds
FEW = {"arguments": TINY["dit"] | {"few_step": True}, "guidance_range": (1.0, 3.0)}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """A few-step network; a service that may be asked for too much, too."""
    folder = tmp_path_factory.mktemp("few")
    write_checkpoint(folder / "dit", "dit", **FEW)
    with running(create_app(tiny_settings(folder, max_steps=1000, max_images=1024))) as live:
        yield live, folder


def post(server: Running, form: str, **fields: Any) -> httpx.Response:
    return server.client.post("/generate", json=HOW | {"format": form} | fields)


def arrays(response: httpx.Response) -> dict[str, np.ndarray]:
    assert response.status_code == 200, response.text
    with np.load(io.BytesIO(response.content), allow_pickle=False) as file:
        return {name: file[name] for name in file}


def walk(folder: Path, found: dict[str, np.ndarray]) -> tuple[ModelConfig, np.ndarray, np.ndarray, np.ndarray]:
    """The configuration; x, d and denoised images [n, steps, C, H, W] of the plain loop, told how by the recipe."""
    recipe = json.loads(str(found["recipe"]))
    network, config = load_checkpoint(folder / recipe["model"])
    table = config.table(recipe["sampler"], int(recipe["steps"]), recipe["spacing"])
    steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def watch(step: int, x: Tensor, d: Tensor) -> None:
        of_x, of_d = table.preview[step].tolist()
        steps.append((x.clone(), d.clone(), of_x * x + of_d * d))

    scale, low, high = (float(recipe[name]) for name in ("guidance", "guidance_low", "guidance_high"))
    guidance = Guidance(scale, low, high, config.guidance_range)
    labels, seeds = torch.from_numpy(found["labels"]), torch.from_numpy(found["seeds"])
    more = {"guidance": guidance, "null_label": 3, "watch": watch}
    with torch.inference_mode():
        sample(network, table, labels, seeds, config.image_shape, **more)
    x, d, denoised = (torch.stack(kind, 1).numpy() for kind in zip(*steps, strict=True))
    return config, x, d, denoised


def check_against_the_plain_loop(folder: Path, found: dict[str, np.ndarray]) -> None:
    config, x, d, denoised = walk(folder, found)
    np.testing.assert_allclose(found["x"][:, 1:], x, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(found["denoised"], denoised, rtol=TOLERANCE, atol=TOLERANCE)
    recipe = json.loads(str(found["recipe"]))
    rows = config.table(recipe["sampler"], int(recipe["steps"]), recipe["spacing"]).rows
    np.testing.assert_allclose(found["times"], [*rows[:, 0] / 1000, 0], rtol=1e-6)
    before = np.concatenate([np.zeros_like(d[:, :1]), d[:, :-1]], axis=1)
    a, b, c, s = rows[:, 3:].T[:, None, :, None, None, None]
    made = a * found["x"][:, :-1] + b * d + c * before + s * found["noise"]
    np.testing.assert_allclose(
        found["x"][:, 1:], made, rtol=TOLERANCE, atol=TOLERANCE
    )  # x'= a x + b d + c d_prev + s z
    drawn = np.abs(found["noise"]).max(axis=(0, 2, 3, 4)) > 0
    assert (drawn == (rows[:, 6] != 0)).all()


@pytest.mark.parametrize("model", ["dit", "unet"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "ab2"])
@pytest.mark.parametrize("guidance", [1, 2])
def test_the_numbers_are_those_of_the_plain_loop(
    server: Running, checkpoints: Path, model: str, sampler: str, guidance: int
) -> None:
    found = arrays(post(server, "npz", model=model, sampler=sampler, guidance=guidance))
    check_against_the_plain_loop(checkpoints, found)


def test_the_numbers_of_a_few_step_network_are_those_of_the_plain_loop(few: tuple[Running, Path]) -> None:
    server, folder = few
    found = arrays(post(server, "npz", sampler="consistency", steps=3))
    assert np.abs(found["noise"][:, :2]).max() > 1
    check_against_the_plain_loop(folder, found)


def test_shapes_and_types_and_what_stands_beside(server: Running) -> None:
    response = post(server, "npz", deterministic=True)
    found = arrays(response)
    told = {name: (array.dtype.name, array.shape) for name, array in found.items() if name != "recipe"}
    assert told == {
        "x": ("float32", (2, 7, 3, 8, 8)),
        "denoised": ("float32", (2, 6, 3, 8, 8)),
        "noise": ("float32", (2, 6, 3, 8, 8)),
        "times": ("float64", (7,)),
        "images": ("uint8", (2, 8, 8, 3)),
        "seeds": ("int64", (2,)),
        "labels": ("int64", (2,)),
    }
    assert response.headers["content-type"] == "application/x-npz"
    assert response.headers["X-Seed"] == ",".join(map(str, found["seeds"]))
    assert {"queue", "denoise", "encode"} == {
        part.split(";")[0].strip() for part in response.headers["Server-Timing"].split(",")
    }
    assert found["labels"].tolist() == [1, 1]
    plain = np.load(io.BytesIO(post(server, "npy", deterministic=True).content))
    assert (found["images"] == plain).all()
    recipe = json.loads(str(found["recipe"]))
    assert recipe == pictures.recipe(post(server, "png", deterministic=True).content)


@pytest.mark.parametrize("strength", [0.4, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_a_trajectory_of_an_image_begins_at_its_strength(server: Running, strength: float, masked: bool) -> None:
    fields = {"image": text(IMAGE), "strength": strength} | ({"mask": text(MASK)} if masked else {})
    found = arrays(post(server, "npz", spacing="trailing", **fields))
    noise = arrays(post(server, "npz"))["x"][:, 0]
    start = found["x"][:, 0]
    if strength == 1:
        assert (start == noise).all()
    else:  # the flow: x = (1 - u) image + u noise
        image = IMAGE.transpose(2, 0, 1) / 127.5 - 1
        np.testing.assert_allclose(start, 0.6 * image + 0.4 * noise, atol=1e-5)
        assert found["times"][0] == pytest.approx(0.4)
    if masked:
        assert (found["images"][:, ~FREE] == IMAGE[~FREE]).all()


def frames(response: httpx.Response) -> list[np.ndarray]:
    assert response.status_code == 200, response.text
    return pictures.frames(response.content)


@pytest.mark.parametrize("more", [{}, {"sampler": "ab2"}, {"image": text(IMAGE), "mask": text(MASK)}], ids=str)
def test_frames_are_the_previews_of_every_step_and_the_answer(server: Running, more: dict[str, Any]) -> None:
    how = {"deterministic": True} | more
    default, *shown = frames(post(server, "apng", **how))
    plain = pixels(post(server, "png", **how))
    assert (default == plain).all()  # what a program shows that knows no APNG
    assert (shown[-1] == plain).all()
    fields = HOW | how | {"preview": 64}
    events = server.client.post("/generate", json=fields, headers={"Accept": "text/event-stream"}).text
    found: dict[tuple[int, int], np.ndarray] = {}
    for line in events.splitlines():
        if line.startswith("data: ") and '"partial_image_index"' in line:
            data = json.loads(line.removeprefix("data: "))
            found[data["step"], data["image_index"]] = pictures.decoded(data["b64_json"])
    assert len(shown) == 6
    assert len(found) == 10
    for step, frame in enumerate(shown[:-1], 1):
        assert (frame == images.grid([found[step, index] for index in range(2)])).all()


def test_a_way_is_a_row_as_in_the_plain_picture(server: Running) -> None:
    more = {"n": 6, "seed_to": 9}
    default, *_ = frames(post(server, "apng", **more))  # the finished picture
    plain = pixels(post(server, "png", **more))
    assert plain.shape == (8, 6 * 8, 3)
    assert (default == plain).all()


def test_a_webp_has_the_same_frames(server: Running) -> None:
    response = post(server, "webp-animation", deterministic=True)
    assert response.headers["content-type"] == "image/webp"
    _, *expected = frames(post(server, "apng", deterministic=True))
    for frame, other in zip(frames(response), expected, strict=True):
        assert (frame == other).all()


@pytest.mark.parametrize("form", ["apng", "webp-animation"])
def test_the_last_frame_stays_and_then_it_begins_again(form: str) -> None:
    sheets = [np.full((8, 8, 3), 50 * i, np.uint8) for i in range(4)]
    with pictures.opened(images.encode_animation(sheets, form, {"seed": "5"})) as file:
        durations = []
        for number in range(file.n_frames):  # pyright: ignore[reportAttributeAccessIssue]
            file.seek(number)
            file.load()
            durations.append(file.info.get("duration"))
        assert durations[-4:] == [250, 250, 250, 1500]
        assert file.info["loop"] == 0
        if form == "apng":
            assert file.info["seed"] == "5"


@pytest.mark.parametrize(("steps", "milliseconds"), [(1, []), (4, [250]), (30, [100]), (250, [40])])
def test_a_long_animation_is_faster(steps: int, milliseconds: list[int]) -> None:
    sheets = [np.full((4, 4, 1), i, np.uint8) for i in range(steps)]
    data = images.encode_animation(sheets, "apng", {})
    delays = [int.from_bytes(part[20:22], "big") for part in data.split(b"fcTL")[1:]]
    assert sorted(set(delays[:-1])) == milliseconds
    assert (len(delays), delays[-1]) == (steps, 1500)


def test_one_step_is_one_frame(server: Running) -> None:
    plain = pixels(post(server, "png", steps=1, deterministic=True))
    for form in images.ANIMATIONS:
        assert (frames(post(server, form, steps=1, deterministic=True))[-1] == plain).all()


@pytest.mark.parametrize("form", ["npz", *images.ANIMATIONS])
def test_a_link_gives_the_same_bytes_and_304(server: Running, form: str) -> None:
    query = HOW | {"deterministic": "true", "format": form}
    first = server.client.get("/generate", params=query)
    assert first.status_code == 200, first.text
    again = server.client.get("/generate", params=query)
    assert (first.content, first.headers["etag"]) == (again.content, again.headers["etag"])
    tags = {
        server.client.get("/generate", params=query | {"format": other}).headers["etag"] for other in ("png", form)
    }
    assert len(tags) == 2
    known = server.client.get("/generate", params=query, headers={"If-None-Match": first.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    assert "max-age" in first.headers["cache-control"]


def test_accept_chooses_numbers_but_no_animation(server: Running) -> None:
    def chosen(accept: str) -> str:
        return server.client.post("/generate", json=HOW, headers={"Accept": accept}).headers["content-type"]

    assert chosen("application/x-npz") == "application/x-npz"
    assert chosen("application/*") == "application/x-npy"
    assert chosen("image/avif,image/apng,image/*,*/*;q=0.8") == "image/png"  # browsers send that for every picture
    assert chosen("image/avif,image/webp,image/apng,*/*;q=0.8") == "image/webp"
    assert len(frames(server.client.post("/generate", json=HOW, headers={"Accept": "image/webp"}))) == 1
    query = HOW | {"deterministic": "true"}
    response = server.client.get("/generate", params=query, headers={"Accept": "image/apng,image/*"})
    assert response.headers["content-type"] == "image/png"


@pytest.mark.parametrize("form", ["npz", *images.ANIMATIONS])
def test_previews_of_a_trajectory_are_refused(server: Running, form: str) -> None:
    stream = server.client.post("/generate", json=HOW | {"format": form}, headers={"Accept": "text/event-stream"})
    assert stream.status_code == 422
    assert stream.json()["detail"] == f"format: {form} cannot be streamed: use one of png, webp, jpeg"
    refused = post(server, form, preview=2)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "preview")


@pytest.mark.parametrize("form", ["npz", *images.ANIMATIONS])
def test_openai_refuses_the_formats_of_trajectories(server: Running, form: str) -> None:
    body = {"model": "dit", "prompt": "cat", "output_format": form}
    refused = server.client.post("/v1/images/generations", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "output_format")


@pytest.mark.parametrize("form", ["npz", *images.ANIMATIONS])
def test_too_many_images_and_steps_are_refused_before_any_work(few: tuple[Running, Path], form: str) -> None:
    server, _ = few
    most = MOST_NUMBERS // (12 * 3 * 8 * 8)
    steps = server.metric("diffusion_step_duration_seconds_count")
    refused = post(server, form, n=most // 1000 + 1, steps=1000)
    problem = refused.json()
    assert (refused.status_code, problem["type"]) == (413, "urn:problem:answer-too-large")
    assert problem["detail"].startswith(f"n: n x steps may be at most {most} for format={form}, not")
    assert [error["field"] for error in problem["errors"]] == ["n", "steps"]
    assert server.metric("diffusion_step_duration_seconds_count") == steps
    assert post(server, form, n=3, steps=4).status_code == 200


def test_the_bound_is_a_thousand_for_the_shipped_models() -> None:
    assert MOST_NUMBERS // (12 * 3 * 32 * 32) == 1024
    assert MAX_HELD >= 2 * 2 * MOST_NUMBERS  # two of the largest, as arrays and as files


def room(server: Running) -> recording.Room:
    return server.app.state.handler.room


def test_an_answer_is_counted_and_its_memory_is_free_again(server: Running) -> None:
    before = server.metric("diffusion_requests_total", model="dit", outcome="ok")
    for form in ("npz", "apng", "webp-animation"):
        assert post(server, form).status_code == 200
    assert server.metric("diffusion_requests_total", model="dit", outcome="ok") == before + 3
    wait_until(lambda: room(server).free == MAX_HELD)


def test_a_trajectory_without_room_is_told_when_to_come_back(server: Running) -> None:
    counted = {"diffusion_requests_total": "outcome", "diffusion_rejections_total": "reason"}
    kinds = {"outcome": "rejected", "reason": "unavailable"}
    before = {name: server.metric(name, model="dit", **{label: kinds[label]}) for name, label in counted.items()}
    with room(server).taken(MAX_HELD):
        refused = post(server, "npz")
        assert post(server, "png").status_code == 200
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert refused.json()["detail"] == "too many trajectories at once: try again later"
    for name, label in counted.items():
        assert server.metric(name, model="dit", **{label: kinds[label]}) == before[name] + 1
    assert post(server, "npz").status_code == 200


@pytest.fixture(scope="module")
def odd() -> Iterator[Running]:
    models = {"slow": entry(Slow), "fragile": entry(Fragile)}
    with running(create_app(tiny_settings(Path(), models=models))) as live:
        yield live


@pytest.mark.parametrize("form", ["npz", "apng"])
def test_the_memory_is_free_after_a_failure_a_deadline_and_a_client_that_leaves(odd: Running, form: str) -> None:
    broken = post(odd, form, model="fragile", **{"class": "0"})
    assert broken.status_code == 500
    late = post(odd, form, model="slow", deadline_ms=30, steps=200)
    assert late.status_code in (503, 504)
    with pytest.raises(httpx.ReadTimeout):
        odd.client.post("/generate", json=HOW | {"model": "slow", "steps": 200, "format": form}, timeout=BRIEF)
    wait_until(lambda: room(odd).free == MAX_HELD)
    wait_until(lambda: odd.metric("diffusion_running_slots", model="slow") == 0)


def test_the_memory_is_taken_before_the_first_step(odd: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(post, odd, "npz", model="slow", steps=100)
        wait_until(lambda: room(odd).free == MAX_HELD - 2 * 2 * 100 * 12 * 3 * 8 * 8)
        assert asked.result().status_code == 200
    wait_until(lambda: room(odd).free == MAX_HELD)


def test_a_simulated_model_tells_zeros(checkpoints: Path) -> None:
    models = {"dit": simulated(checkpoints / "dit", 0.1)}
    with running(create_app(tiny_settings(checkpoints, models=models))) as live:
        response = post(live, "npz", n=16, steps=50)
        found = arrays(response)
        assert len(frames(post(live, "apng"))) == 7
    assert response.headers["X-Simulated"] == "true"
    assert json.loads(str(found["recipe"]))["simulated"] == "true"
    assert not found["x"][:, 1:].any()


def test_a_large_body_leaves_in_pieces() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    body = bytes(2 * PIECE + 5)
    asyncio.run(LargeResponse(body)({"type": "http"}, receive, send))
    start, *pieces = sent
    assert dict(start["headers"])[b"content-length"] == str(len(body)).encode()
    assert [len(piece["body"]) for piece in pieces] == [PIECE, PIECE, 5, 0]
    assert [piece.get("more_body", False) for piece in pieces] == [True, True, True, False]
