"""POST /generate over a real socket."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.checkpoint import load_checkpoint
from models.samplers import PLAIN, build_table
from models.sampling import Guidance, sample
from models.schedule import NoiseSchedule, Prediction
from service.errors import MAX_FIELD_ERRORS
from service.web.schemas import FIELD_NAMES, MAX_SEED
from tests.service.conftest import Running
from tests.service.pictures import decoded, difference, pixels


def generate(server: Running, **query: Any) -> httpx.Response:
    return server.client.post("/generate", params={"model": "dit", "class": "cat", "seed": 1} | query)


@pytest.mark.parametrize("model", ["dit", "unet"])
def test_answers_a_png(server: Running, model: str) -> None:
    response = generate(server, model=model)
    assert response.headers["content-type"] == "image/png"
    assert pixels(response).shape == (8, 8, 3)


@pytest.mark.parametrize("model", ["dit", "unet"])
@pytest.mark.parametrize("sampler", PLAIN)
def test_pixels_are_those_of_the_plain_loop(server: Running, checkpoints: Path, model: str, sampler: str) -> None:
    """Weights from disk, seed, class, guidance and sampler all reach the image."""
    response = generate(server, model=model, sampler=sampler, steps=6, guidance=2, seed=77, **{"class": "dog"})
    network, config = load_checkpoint(checkpoints / model)
    table = build_table(NoiseSchedule(config.schedule), Prediction(config.prediction), sampler, 6)
    with torch.inference_mode():
        labels, seeds = torch.tensor([1]), torch.tensor([77])
        x = sample(network, table, labels, seeds, config.image_shape, guidance=Guidance(2.0), null_label=3)
    expected = ((x[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert difference(pixels(response), expected) <= 1


def test_same_seed_same_image_and_other_seed_another(server: Running) -> None:
    first, again, other = (pixels(generate(server, seed=seed)) for seed in (5, 5, 6))
    assert difference(first, again) <= 1
    assert difference(first, other) > 20


def test_random_seed_is_told_and_reproduces(server: Running) -> None:
    response = server.client.post("/generate?model=dit&class=dog")
    seed = response.headers["X-Seed"]
    assert difference(pixels(response), pixels(generate(server, seed=seed, **{"class": "dog"}))) <= 1
    assert server.client.post("/generate?model=dit&class=dog").headers["X-Seed"] != seed


def test_answers_have_headers_for_seed_request_id_and_timings(server: Running) -> None:
    response = server.client.post("/generate?model=dit&class=cat&seed=9", headers={"X-Request-Id": "mine-1"})
    assert response.headers["X-Seed"] == "9"
    assert response.headers["X-Request-Id"] == "mine-1"
    timings = dict(part.split(";dur=") for part in response.headers["Server-Timing"].split(", "))
    assert list(timings) == ["queue", "denoise", "encode"]
    assert all(float(value) >= 0 for value in timings.values())
    assert float(timings["denoise"]) > 0
    assert response.headers["Cache-Control"] == "no-store"


def test_a_strange_request_id_is_replaced(server: Running) -> None:
    response = server.client.post("/generate?model=dit&class=cat", headers={"X-Request-Id": "a b" * 30})
    assert len(response.headers["X-Request-Id"]) == 32


@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
def test_several_images_are_a_grid(server: Running, form: str) -> None:
    response = generate(server, n=3, format=form)
    assert response.headers["content-type"] == f"image/{form}"
    assert pixels(response).shape == (16, 16, 3)
    assert len(set(response.headers["X-Seed"].split(","))) == 3


def test_npy_holds_every_image(server: Running) -> None:
    array = np.load(io.BytesIO(generate(server, n=3, format="npy").content), allow_pickle=False)
    assert (array.shape, array.dtype) == ((3, 8, 8, 3), np.uint8)


def test_json_lists_every_image_with_its_seed(server: Running) -> None:
    fields = {"model": "unet", "class": "dog", "n": 3, "steps": 4}
    response = server.client.post("/generate", json=fields, headers={"Accept": "application/json"})
    answer = response.json()
    assert (answer["model"], answer["class"], answer["class_index"], answer["steps"]) == ("unet", "dog", 1, 4)
    assert answer["request_id"] == response.headers["X-Request-Id"]
    assert [str(image["seed"]) for image in answer["images"]] == response.headers["X-Seed"].split(",")
    for image in answer["images"]:  # each image alone, by its own seed
        alone = pixels(generate(server, model="unet", steps=4, seed=image["seed"], **{"class": "dog"}))
        assert difference(alone, decoded(image["png_base64"])) <= 1


@pytest.mark.parametrize(("name", "index"), [("cat", 0), ("DOG", 1), ("1", 1), ("0", 2), (" dog ", 1)])
def test_class_by_name_or_index(server: Running, name: str, index: int) -> None:
    """A name wins over an index: class 2 of this model is called "0"."""
    assert generate(server, format="json", **{"class": name}).json()["class_index"] == index


def test_a_json_number_is_an_index_and_text_a_name(server: Running) -> None:
    """Class 2 of this model is called "0"."""
    for sent, index in ((1, 1), (0, 0), (2, 2), ("0", 2), ("1", 1)):
        response = server.client.post("/generate", json={"model": "dit", "class": sent, "format": "json"})
        assert response.json()["class_index"] == index
    refused = server.client.post("/generate", json={"model": "dit", "class": 3})
    assert refused.json()["detail"] == "class: must be one of cat, dog, 0, or an index from 0 to 2, not 3"


def test_defaults_come_from_the_checkpoint_and_are_told(server: Running) -> None:
    answer = generate(server, format="json").json()
    defaults = server.card()["defaults"]
    assert {"steps", "sampler", "guidance"} <= defaults.keys()
    assert {key: answer[key] for key in defaults} == defaults


BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "steps true": ({"steps": True}, 422, "steps"),
    "guidance false": ({"guidance": False}, 422, "guidance"),
    "class true": ({"class": True}, 422, "class"),
    "no model": ({"model": None}, 422, "model"),
    "unknown model": ({"model": "vae"}, 404, "model"),
    "no class": ({"class": None}, 422, "class"),
    "class 11": ({"class": "11"}, 422, "class"),
    "class -1": ({"class": "-1"}, 422, "class"),
    "class huge": ({"class": "9" * 400}, 422, "class"),
    "class nul": ({"class": "\x00"}, 422, "class"),
    "class other digits": ({"class": "²"}, 422, "class"),
    "steps 0": ({"steps": 0}, 422, "steps"),
    "steps above the service's bound": ({"steps": 201}, 422, "steps"),
    "steps 2.5": ({"steps": 2.5}, 422, "steps"),
    "guidance nan": ({"guidance": "nan"}, 422, "guidance"),
    "guidance inf": ({"guidance": "inf"}, 422, "guidance"),
    "guidance -1": ({"guidance": -1}, 422, "guidance"),
    "interval upside down": ({"guidance_low": 0.9, "guidance_high": 0.1}, 422, "guidance_low"),
    "n 10^9": ({"n": 10**9}, 422, "n"),
    "n 0": ({"n": 0}, 422, "n"),
    "seed -1": ({"seed": -1}, 422, "seed"),
    "seed too large": ({"seed": MAX_SEED + 1}, 422, "seed"),
    "unknown sampler": ({"sampler": "heun"}, 422, "sampler"),
    "unknown spacing": ({"spacing": "linear"}, 422, "spacing"),
    "unknown quality": ({"quality": "hd"}, 422, "quality"),
    "quality beside steps": ({"quality": "best", "steps": 4}, 422, "quality"),
    "quality beside an interval": ({"quality": "draft", "guidance_low": 0.1}, 422, "quality"),
    "unknown format": ({"format": "gif"}, 422, "format"),
    "unknown field": ({"stepz": 3}, 422, "stepz"),
}


@pytest.mark.parametrize(("change", "status", "field"), BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("place", ["params", "json"])
def test_bad_input_names_the_field(
    server: Running, change: dict[str, Any], status: int, field: str, place: str
) -> None:
    fields = {k: v for k, v in ({"model": "dit", "class": "cat"} | change).items() if v is not None}
    sent = {"params": fields, "json": None} if place == "params" else {"params": None, "json": fields}
    response = server.client.post("/generate", **sent)
    problem = response.json()
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["X-Request-Id"]
    assert field in problem["detail"]
    assert field in [error["field"] for error in problem["errors"]]


def test_null_is_the_same_as_no_field(server: Running) -> None:
    fields = dict.fromkeys(name for name in FIELD_NAMES if name not in ("model", "class", "seed"))
    plain = {"model": "dit", "class": "cat", "seed": 3}
    assert (pixels(server.client.post("/generate", json=plain | fields)) == pixels(generate(server, **plain))).all()


def test_fields_in_the_query_and_in_the_body_are_refused(server: Running) -> None:
    answer = server.client.post("/generate?steps=3", json={"model": "dit", "class": 1})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "steps: send the fields in the body or in the query, not in both"


def test_a_field_twice_in_the_query(server: Running) -> None:
    response = server.client.post("/generate?model=dit&class=1&class=2")
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "class")


HUGE = b'{"n": 1' + b"0" * 5000 + b"}"
BROKEN = [b"{", b"[]", b"3", b"\xff\xfe", b'{"model": "\xff"}', b"[" * 9999, b'{"steps": 1e400}', HUGE]


@pytest.mark.parametrize("body", BROKEN, ids=[str(body[:20]) for body in BROKEN])
def test_a_broken_body_is_refused(server: Running, body: bytes) -> None:
    response = server.client.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
    assert response.json()["errors"][0]["field"] in ("body", "steps")


def test_a_body_without_its_content_type_says_what_to_send(server: Running) -> None:
    response = server.client.post("/generate", content=b'{"model": "dit"}')
    assert response.status_code == 422
    assert "Content-Type: application/json" in response.json()["detail"]


def test_an_unknown_field_is_told_the_known_ones(server: Running) -> None:
    detail = generate(server, stepz=3).json()["detail"]
    assert "steps" in detail
    assert "guidance_low" in detail


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just([]) | st.just({})
NAMES = ["model", "class", "steps", "sampler", "guidance", "seed", "n", "x"]
fixture_is_shared = [HealthCheck.function_scoped_fixture]  # it is one server for all examples
on_one_server = settings(max_examples=100, deadline=None, suppress_health_check=fixture_is_shared)


@on_one_server
@given(st.dictionaries(st.sampled_from(NAMES), values))
def test_any_json_is_answered_with_an_image_or_a_problem(server: Running, fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "dit", "class": 0} | fields)  # NaN and infinities as Python writes them
    response = server.client.post("/generate", content=body, headers={"Content-Type": "application/json"})
    if response.status_code != 200:
        assert response.status_code in (404, 422)
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["detail"]


@on_one_server
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.text(max_size=8)), max_size=6))
def test_any_query_is_answered_with_an_image_or_a_problem(server: Running, query: list[tuple[str, str]]) -> None:
    assert server.client.post("/generate?" + urlencode(query)).status_code in (200, 404, 422)


def test_a_header_that_accepts_no_format_gets_406(server: Running) -> None:
    response = server.client.post("/generate?model=dit&class=1", headers={"Accept": "video/mp4"})
    assert response.status_code == 406
    assert "image/png" in response.json()["detail"]


def test_format_wins_over_accept(server: Running) -> None:
    response = server.client.post("/generate?model=dit&class=1&format=png", headers={"Accept": "application/json"})
    assert response.headers["content-type"] == "image/png"


def test_unknown_path_and_method_are_problems_too(server: Running) -> None:
    for response in (server.client.get("/nope"), server.client.put("/generate")):
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["Cache-Control"] == "no-store"


def test_many_clients_get_their_own_images(server: Running) -> None:
    """40 concurrent requests of every kind; each image equals the one its client gets alone."""
    rng = np.random.default_rng(0)
    asked = [
        {
            "model": str(rng.choice(["dit", "unet"])),
            "class": int(rng.integers(2)),
            "steps": int(rng.integers(1, 20)),
            "sampler": str(rng.choice(PLAIN)),
            "guidance": float(rng.choice([0, 1, 1.5, 4])),
            "seed": int(rng.integers(2**53)),
        }
        for _ in range(40)
    ]
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(lambda query: pixels(generate(server, **query)), asked))
    for query, image in zip(asked, together, strict=True):
        assert difference(pixels(generate(server, **query)), image) <= 1, query


def test_a_thousand_wrong_fields_get_a_short_answer(server: Running) -> None:
    answer = server.client.post("/generate", json={f"field{i}": 1 for i in range(1000)})
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == MAX_FIELD_ERRORS
    assert "; and 990 more" in answer.json()["detail"]
    assert len(answer.content) < 10_000


def test_a_path_with_a_slash_at_its_end_is_not_found(server: Running) -> None:
    assert server.client.post("/generate/?model=dit&class=0").status_code == 404
