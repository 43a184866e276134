"""Mixtures of classes, classes to lead away from, and images between two ends, over a real socket."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from models.checkpoint import load_checkpoint
from models.sampling import Further, Guidance, sample, to_uint8
from models.seeds import image_seed
from service.local import create_app
from service.settings import ModelEntry, Settings
from service.web.schemas import FIELD_NAMES
from tests.checkpoints import write_checkpoint
from tests.service.conftest import Running, running
from tests.service.pictures import File, decoded, difference, pixels, png, recipe

openai = pytest.importorskip("openai", reason="needs openai")

CAT, DOG, NOUGHT, NULL = range(4)
SCALE = 6.0  # so large that the class changes what the tiny UNet draws
HOW = {"steps": 6, "guidance": SCALE, "sampler": "dpmpp_2m", "spacing": "trailing"}
HOW |= {"guidance_low": 0, "guidance_high": 1}


def post(server: Running, **fields: Any) -> httpx.Response:
    return server.client.post("/generate", json={"model": "dit", "seed": 5} | HOW | fields)


def drawn(response: httpx.Response) -> np.ndarray:
    """[n, H, W, C] uint8, of an answer in JSON."""
    assert response.status_code == 200, response.text
    return np.stack([decoded(image["png_base64"]) for image in response.json()["images"]])


def loop(
    checkpoints: Path,
    model: str,
    parts: dict[int, float],
    seeds: tuple[int, float, int] = (5, 0.0, 0),
    second: int = NULL,
) -> np.ndarray:
    """One image by the plain loop; HOW, a weight for each class, and seeds: own, how far on the way, other."""
    network, config = load_checkpoint(checkpoints / model)
    (label, _), *more = parts.items()
    further = None
    if more:
        labels, weights = zip(*more, strict=True)
        further = Further(torch.zeros(len(more), dtype=torch.int64), torch.tensor(labels), torch.tensor(weights))
    table, own = config.table("dpmpp_2m", 6), torch.tensor(seeds[:1], dtype=torch.int64)
    how = {"guidance": Guidance(SCALE), "null_label": second, "further": further, "slerps": [(seeds[2], seeds[1])]}
    with torch.inference_mode():
        x = sample(network, table, torch.tensor([label]), own, config.image_shape, **how)  # pyright: ignore
    return to_uint8(x[0]).permute(1, 2, 0).numpy()


MIXED: dict[str, Any] = {
    "text": "cat:0.25,dog:0.75",
    "spaces and other sums": " CAT : 1 , dog: 3 ",
    "a class twice": "cat:0.25,dog:0.5,1:0.25",
    "a name twice": "cat:1,dog:2,dog:1",
    "json": {"cat": 0.25, "dog": 0.75},
    "json in text": '{"cat": 0.25, "dog": 0.75}',
}


@pytest.mark.parametrize("model", ["dit", "unet"])
@pytest.mark.parametrize("asked", MIXED.values(), ids=MIXED.keys())
def test_a_mixture_is_that_of_the_plain_loop(server: Running, checkpoints: Path, model: str, asked: Any) -> None:
    (image,) = drawn(post(server, model=model, format="json", **{"class": asked}))
    assert difference(image, loop(checkpoints, model, {CAT: 0.25, DOG: 0.75})) <= 1
    assert difference(image, loop(checkpoints, model, {CAT: 1.0})) > 1
    assert difference(image, loop(checkpoints, model, {DOG: 1.0})) > 1


def test_the_query_takes_a_mixture_too(server: Running, checkpoints: Path) -> None:
    query = {"model": "dit", "class": "cat:0.25,dog:0.75", "seed": 5, "format": "json"} | HOW
    (image,) = drawn(server.client.post("/generate", params=query))
    assert difference(image, loop(checkpoints, "dit", {CAT: 0.25, DOG: 0.75})) <= 1


def test_an_image_leads_away_from_a_class(server: Running, checkpoints: Path) -> None:
    (image,) = drawn(post(server, **{"class": "cat"}, negative_class="dog", format="json"))
    assert difference(image, loop(checkpoints, "dit", {CAT: 1.0}, second=DOG)) <= 1
    assert difference(image, loop(checkpoints, "dit", {CAT: 1.0})) > 1


def test_a_list_of_classes_gives_an_image_of_each(server: Running, checkpoints: Path) -> None:
    answer = post(server, **{"class": ["cat", 1, {"cat": 0.5, "0": 0.5}, "dog:1,cat:1"]}, format="json")
    seeds = [image_seed(5, index) for index in range(4)]
    wanted = [{CAT: 1.0}, {DOG: 1.0}, {CAT: 0.5, NOUGHT: 0.5}, {DOG: 0.5, CAT: 0.5}]
    for image, parts, seed in zip(drawn(answer), wanted, seeds, strict=True):
        assert difference(image, loop(checkpoints, "dit", parts, (seed, 0.0, 0))) <= 1
    assert [image["seed"] for image in answer.json()["images"]] == seeds
    told = [image["class"] for image in answer.json()["images"]]
    assert told == ["cat", "dog", "cat:0.5,0:0.5", "dog:0.5,cat:0.5"]
    assert (json.loads(answer.json()["class"]), answer.json()["class_index"]) == (told, None)


def test_images_lead_from_a_class_to_another(server: Running, checkpoints: Path) -> None:
    answer = post(server, **{"class": "cat"}, class_to="dog", n=5, format="json")
    for image, part in zip(drawn(answer), (0, 0.25, 0.5, 0.75, 1), strict=True):
        assert difference(image, loop(checkpoints, "dit", {CAT: 1.0 - part, DOG: part})) <= 1
    said = answer.json()
    assert (said["class"], said["class_to"], said["class_index"]) == ("cat", "dog", None)
    assert [image["seed"] for image in said["images"]] == [5] * 5
    assert said["images"][1]["class"] == "cat:0.75,dog:0.25"


def test_images_lead_from_a_seed_to_another(server: Running, checkpoints: Path) -> None:
    answer = post(server, **{"class": "cat"}, seed_to=9, n=3, format="json")
    for image, seeds in zip(drawn(answer), ((5, 0.0, 9), (5, 0.5, 9), (9, 0.0, 0)), strict=True):
        assert difference(image, loop(checkpoints, "dit", {CAT: 1.0}, seeds)) <= 1
    assert answer.headers["X-Seed"] == "5,5,9"
    assert (answer.json()["seed_to"], answer.json()["class_index"]) == (9, 0)


def test_images_lead_to_another_class_and_seed_at_once(server: Running, checkpoints: Path) -> None:
    images = drawn(post(server, **{"class": "cat"}, class_to={"dog": 1, "0": 1}, seed_to=9, n=3, format="json"))
    assert difference(images[0], loop(checkpoints, "dit", {CAT: 1.0})) <= 1
    middle = {CAT: 0.5, DOG: 0.25, NOUGHT: 0.25}
    assert difference(images[1], loop(checkpoints, "dit", middle, (5, 0.5, 9))) <= 1
    assert difference(images[2], loop(checkpoints, "dit", {DOG: 0.5, NOUGHT: 0.5}, (9, 0.0, 0))) <= 1


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "ddpm"])
def test_ends_and_single_classes_have_the_bits_of_plain_requests(server: Running, sampler: str) -> None:
    same = {"deterministic": True, "format": "json", "sampler": sampler}
    cat, dog = (
        drawn(post(server, **same, **{"class": name}, seed=seed)) for name, seed in (("cat", 5), ("dog", 9))
    )
    way = drawn(post(server, **same, **{"class": "cat"}, class_to="dog", seed_to=9, n=3))
    assert (way[0] == cat[0]).all()
    assert (way[2] == dog[0]).all()
    assert (drawn(post(server, **same, **{"class": {"cat": 7}}))[0] == cat[0]).all()
    assert (drawn(post(server, **same, **{"class": "cat"}, class_to="dog", between=0))[0] == cat[0]).all()
    between = drawn(post(server, **same, **{"class": "cat"}, class_to="dog", seed_to=9, between=0.5))
    assert (between[0] == way[1]).all()


def test_the_images_of_a_way_stand_in_one_row(server: Running) -> None:
    assert pixels(post(server, **{"class": "cat"}, class_to="dog", n=5)).shape == (8, 5 * 8, 3)
    assert pixels(post(server, **{"class": ["cat"] * 4})).shape == (16, 16, 3)


RECIPES: dict[str, dict[str, Any]] = {
    "mixture": {"class": {"cat": 0.1, "dog": 0.2, "0": 0.7}},
    "thirds": {"class": "cat:1,dog:1,0:1"},
    "list": {"class": ["cat", {"dog": 1, "cat": 2}]},
    "negative": {"class": "cat", "negative_class": 2},
    "classes": {"class": "cat", "class_to": "dog:1,0:2", "n": 4},
    "seeds": {"class": "cat", "seed_to": 77, "n": 3},
    "both": {"class": {"cat": 3, "dog": 1}, "class_to": 2, "seed_to": 77, "n": 3},
    "one": {"class": "cat", "class_to": "dog", "seed_to": 77, "between": 0.3},
}


def fields_of(file: File) -> dict[str, str]:
    """The fields that a PNG names."""
    return {name: value for name, value in recipe(file).items() if name in FIELD_NAMES}


@pytest.mark.parametrize("asked", RECIPES.values(), ids=RECIPES.keys())
def test_a_recipe_gives_the_same_file_again(server: Running, asked: dict[str, Any]) -> None:
    first = post(server, **asked, deterministic=True)
    assert first.status_code == 200, first.text
    query = fields_of(first.content) | {"format": "png"}
    again = server.client.get("/generate", params=query)
    assert again.content == first.content, query
    unchanged = server.client.get("/generate", params=query, headers={"If-None-Match": again.headers["etag"]})
    assert unchanged.status_code == 304
    each = post(server, **asked, deterministic=True, format="json").json()["images"]
    for image in each:
        fields = fields_of(image["png_base64"]) | {"format": "png"}
        alone = server.client.get("/generate", params=fields)
        assert alone.content == base64.b64decode(image["png_base64"]), fields


def test_every_field_of_a_mixture_or_way_changes_the_etag(server: Running) -> None:
    query = {"model": "dit", "class": "cat:0.5,dog:0.5", "seed": 1, "deterministic": "true", "n": 2, "steps": 2}
    others = [
        {},
        {"class": "cat:0.6,dog:0.4"},
        {"class": "dog:0.5,cat:0.5"},
        {"class_to": "dog"},
        {"seed_to": "3"},
        {"negative_class": "0"},
    ]
    answers = [server.client.get("/generate", params=query | HOW | {"steps": 2} | other) for other in others]
    assert [answer.status_code for answer in answers] == [200] * len(others)
    assert len({answer.headers["etag"] for answer in answers}) == len(others)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such class": ({"class": {"cow": 1, "cat": 1}}, "class: must be one of cat, dog, 0, or an index from 0"),
    "in text": ({"class": "cow:1,cat:1"}, "class: must be one of cat, dog, 0, or an index from 0 to 2, not 'cow'"),
    "no weight": ({"class": "cat:0.5,dog"}, "class: must be a class, or classes with weights between commas"),
    "second without weight": (
        {"class": "cat:0.5,1"},
        "class: must be a class, or classes with weights between commas",
    ),
    "two points": ({"class": "cat:0.5.1"}, "class: must be a class, or classes with weights between commas"),
    "a point": ({"class": "cat:."}, "class: must be a class, or classes with weights between commas"),
    "true": ({"class": [True]}, "class: must be the name of a class, its index as a whole number, or"),
    "weight true": ({"class": {"cat": True}}, "class: must be the name of a class, its index as a whole number"),
    "huge": ({"class": "cat:1e999"}, "class: a weight must be a number above 0 and at most 1000, not inf"),
    "nothing": ({"class": {}}, "class: must have from 1 to 4 classes, not 0"),
    "thousands": ({"class": {f"{label:05}": 1 for label in range(3000)}}, "class: must have from 1 to 4 classes"),
    "zero": ({"class": {"cat": 0, "dog": 1}}, "class: a weight must be a number above 0 and at most 1000, not 0"),
    "negative": ({"class": {"cat": -1}}, "class: a weight must be a number above 0 and at most 1000, not -1"),
    "too much": ({"class": "cat:1e300"}, "class: a weight must be a number above 0 and at most 1000, not 1e+300"),
    "weight text": ({"class": {"cat": "1"}}, "class: must be the name of a class, its index as a whole number, or"),
    "nested": ({"class": [["cat"]]}, "class: must be the name of a class, its index as a whole number, or"),
    "deep": ({"class": "[" * 3000}, "class: must be the name of a class, its index as a whole number, or"),
    "broken": ({"class": "{cat"}, "class: must be the name of a class, its index as a whole number, or"),
    "no element": ({"class": []}, "class: must have from 1 to 16 elements, not 0"),
    "many": ({"class": ["cat"] * 17}, "class: must have from 1 to 16 elements, not 17"),
    "n": ({"class": ["cat", "dog"], "n": 3}, "n: must be 2, as many as there are classes, or left out"),
    "list to": ({"class_to": ["dog"], "n": 2}, "class_to: must be the name of a class, its index"),
    "list text to": ({"class_to": '["dog"]', "n": 2}, "class_to: must be the name of a class, its index"),
    "from list": ({"class": ["cat", "dog"], "class_to": "0"}, "class_to: needs one class or mixture to lead from"),
    "one image": ({"class_to": "dog"}, "n: must be at least 2 with class_to, or send between for one image"),
    "one seed": ({"class_to": "dog", "seed_to": 3}, "n: must be at least 2 with class_to and seed_to"),
    "no way": ({"between": 0.5}, "between: needs class_to or seed_to"),
    "between many": ({"between": 0.5, "seed_to": 3, "n": 2}, "between: is the place of one image on its way"),
    "beyond": ({"between": 1.5, "seed_to": 3}, "between: must be a number from 0 to 1, not 1.5"),
    "seed": ({"seed_to": -1, "n": 2}, "seed_to: must be a whole number from 0 to 9007199254740991, not -1"),
    "no guidance": ({"negative_class": "dog", "guidance": 1}, "negative_class: needs a guidance other than 1"),
    "unknown": ({"negative_class": "cow"}, "negative_class: must be one of cat, dog, 0"),
    "no class": ({"class": None, "class_to": "dog", "n": 2}, "class: required: one of cat, dog"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_field_is_named(server: Running, fields: dict[str, Any], message: str) -> None:
    response = post(server, **{"class": "cat"} | fields)
    assert response.status_code == 422, response.text
    assert response.json()["detail"].startswith(message)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Six classes, two of whose names look like mixtures, on a device with steps of four rows."""
    names = ["a:0.5,b:0.5", "a", "b", "c,d", "[e]", "f"]
    folder = write_checkpoint(tmp_path_factory.mktemp("names"), "dit", class_names=names)
    entry = ModelEntry.model_validate({"checkpoint": folder})
    with running(create_app(Settings(models={"dit": entry}, device="cpu", dtype="float32", max_rows=4))) as live:
        yield live


def test_a_class_name_wins_over_the_mixture_that_it_looks_like(odd: Running) -> None:
    """The recipe of a mixture with such a name is in JSON."""
    for value, told, index in (
        ("a:0.5,b:0.5", "a:0.5,b:0.5", 0),
        ("[e]", "[e]", 4),
        ({"a": 1, "b": 1}, '{"a": 0.5, "b": 0.5}', None),
        ({"a": 3, "b": 1}, "a:0.75,b:0.25", None),
        ({"c,d": 1, "a:0.5,b:0.5": 3}, '{"c,d": 0.25, "a:0.5,b:0.5": 0.75}', None),
    ):
        first = post(odd, **{"class": value}, guidance=1, deterministic=True, format="json").json()
        assert (first["class"], first["class_index"]) == (told, index)
        again = post(odd, **{"class": told}, guidance=1, deterministic=True, format="json").json()
        assert again["images"] == first["images"]


def test_an_image_must_fit_into_a_step(odd: Running) -> None:
    four = "1:1,2:1,5:1,4:1"
    assert post(odd, **{"class": four}, guidance=1).status_code == 200
    refused = post(odd, **{"class": four})
    assert refused.status_code == 422
    assert refused.json()["detail"] == "class: an image needs 5 rows of a step, which has at most 4 here"
    body = {"model": "dit", "prompt": four, "guidance_scale": 2}
    theirs = odd.client.post("/v1/images/generations", json=body)
    assert (theirs.status_code, theirs.json()["error"]["param"]) == (400, "prompt")
    many = post(odd, **{"class": "0:1,1:1,2:1,3:1,4:1"}, guidance=1).json()["detail"]
    assert many == "class: must have from 1 to 4 classes, not 5"
    led = post(odd, **{"class": four}, class_to="0", n=3, guidance=1).json()["detail"]
    assert led == "class_to: must have together with the first end from 1 to 4 classes, not 5"


def test_openai_prompts_may_be_mixtures(openai_client: Any, server: Running) -> None:
    extra = {"seed": 5, "num_inference_steps": 6, "guidance_scale": 2, "negative_prompt": "0"}
    extra |= {"prompt_to": "dog", "seed_to": 9}
    answer = openai_client.images.generate(model="dit", prompt="cat:3,dog:1", n=3, extra_body=extra)
    own = {"class": "cat:3,dog:1", "class_to": "dog", "negative_class": "0", "seed_to": 9, "n": 3}
    usual = {"model": "dit", "seed": 5, "steps": 6, "guidance": 2, "format": "json"}
    expected = drawn(server.client.post("/generate", json=usual | own))
    for datum, image in zip(answer.data, expected, strict=True):
        assert difference(decoded(datum.b64_json), image) <= 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "cow:1,dog:1"}, "prompt"),
        ({"prompt": "cat", "extra_body": {"prompt_to": "cow"}, "n": 2}, "prompt_to"),
        ({"prompt": "cat", "extra_body": {"negative_prompt": "cow", "guidance_scale": 2}}, "negative_prompt"),
    ],
    ids=["prompt", "to", "negative"],
)
def test_openai_errors_name_their_field(openai_client: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.images.generate(**{"model": "dit"} | fields)
    assert caught.value.param == param


def test_openai_errors_name_no_field_of_generate(openai_client: Any) -> None:
    way = {"prompt_to": "dog", "seed_to": 3}
    with pytest.raises(openai.BadRequestError, match="n: must be at least 2 with prompt_to and seed_to, or"):
        openai_client.images.generate(model="dit", prompt="cat", extra_body=way)
    with pytest.raises(openai.BadRequestError, match="prompt_to: needs one class or mixture to lead from"):
        openai_client.images.generate(model="dit", prompt='["cat", "dog"]', extra_body=way)


def test_an_edit_may_be_of_a_mixture(openai_client: Any, server: Running) -> None:
    file = png(np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8))
    extra = {"seed": 5, "num_inference_steps": 6, "guidance_scale": 2, "strength": 0.7, "seed_to": 9}
    answer = openai_client.images.edit(model="dit", prompt="cat:1,dog:1", image=file, n=3, extra_body=extra)
    image = base64.b64encode(file).decode()
    own = {"model": "dit", "class": "cat:1,dog:1", "image": image, "strength": 0.7, "seed": 5, "seed_to": 9, "n": 3}
    expected = drawn(server.client.post("/generate", json=own | {"steps": 6, "guidance": 2, "format": "json"}))
    for datum, wanted in zip(answer.data, expected, strict=True):
        assert difference(decoded(datum.b64_json), wanted) <= 1


def test_open_inference_takes_a_class_to_lead_away_from(server: Running, checkpoints: Path) -> None:
    asked = {"class": 0, "seed": 5}.items()
    tensors = [{"name": name, "shape": [1], "datatype": "INT64", "data": [value]} for name, value in asked]
    body = {"inputs": tensors, "parameters": HOW | {"negative_class": "dog"}}
    answer = server.client.post("/v2/models/dit/infer", json=body)
    image = np.array(answer.json()["outputs"][0]["data"], np.uint8).reshape(8, 8, 3)
    assert difference(image, loop(checkpoints, "dit", {CAT: 1.0}, second=DOG)) <= 1
