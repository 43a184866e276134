"""What a PNG says about itself is enough to make the same file again."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.local import create_app
from service.settings import Settings
from service.web.schemas import FIELD_NAMES
from tests.checkpoints import write_checkpoint
from tests.service.conftest import Running, running
from tests.service.networks import simulated
from tests.service.pictures import recipe

PLAIN = {"model": "dit", "class": "cat"}
ASKED: dict[str, dict[str, Any]] = {
    "all defaults": {},
    "everything": {
        "class": "0", "seed": 5, "steps": 7, "sampler": "dpmpp_2m_sde", "spacing": "karras", "guidance": 1.7,
        "guidance_low": 0.123, "guidance_high": 0.9,
    },
    "a quality": {"quality": "best"},
    "a grid": {"n": 3, "sampler": "ab2"},
    "another model": {"model": "unet", "class": "1", "steps": 3},
}  # fmt: skip


def again(server: Running, text: dict[str, str]) -> httpx.Response:
    """By the fields in the file and no other."""
    query = {name: value for name, value in text.items() if name in FIELD_NAMES}
    answer = server.client.post("/generate", params=query | {"format": "png"})
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED.keys())
def test_a_file_can_be_made_again(server: Running, asked: dict[str, Any]) -> None:
    query = PLAIN | asked | {"deterministic": "true"}
    first = server.client.post("/generate", params=query)
    text = recipe(first.content)
    assert text["seed"] == first.headers["X-Seed"].split(",")[0]
    assert again(server, text).content == first.content
    if asked.get("n"):
        assert text["seeds"] == first.headers["X-Seed"]


def test_the_text_says_everything(server: Running) -> None:
    query = PLAIN | {"seed": 5, "steps": 7, "sampler": "ddim", "guidance": 2, "guidance_low": 0.1}
    assert recipe(server.client.post("/generate", params=query).content) == {
        "Software": f"Stepwise {server.app.version}",
        "model": "dit",
        "class": "cat",
        "seed": "5",
        "n": "1",
        "steps": "7",
        "sampler": "ddim",
        "spacing": "trailing",
        "guidance": "2.0",
        "guidance_low": "0.1",
        "guidance_high": "1.0",
        "weights_sha256": server.card()["weights_sha256"],
    }


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_each_of_several_files_can_be_made_again(server: Running, accept: str) -> None:
    query = PLAIN | {"n": 2, "steps": 3, "deterministic": "true", "format": "png", "preview": 0}
    if accept == "application/json":
        answer = server.client.post("/generate", params=query | {"format": "json"}).json()
        files = [image["png_base64"] for image in answer["images"]]
    else:
        events = server.client.post("/generate", params=query, headers={"Accept": accept}).text
        files = [part.split('"')[0] for part in events.split('"b64_json": "')[1:]]
    assert len(files) == 2
    for file in files:
        assert again(server, recipe(file)).content == base64.b64decode(file)


def test_a_file_of_openai_can_be_made_again(server: Running) -> None:
    body = {"model": "dit", "prompt": "dog", "deterministic": True, "num_inference_steps": 3}
    answer = server.client.post("/v1/images/generations", json=body).json()
    file = answer["data"][0]["b64_json"]
    assert again(server, recipe(file)).content == base64.b64decode(file)


def test_a_preview_has_no_recipe(server: Running) -> None:
    """Its fields would make the finished picture, which is another one."""
    query = PLAIN | {"steps": 4, "preview": 1}
    events = server.client.post("/generate", params=query, headers={"Accept": "text/event-stream"}).text
    preview, last = (part.split('"')[0] for part in events.split('"b64_json": "')[1:])
    assert recipe(preview) == {}
    assert recipe(last)["steps"] == "4"


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A simulated model that draws 40 images at once, with names that are no Latin-1."""
    folder = write_checkpoint(tmp_path_factory.mktemp("names"), "dit", class_names=["猫", "café"])
    models = {"dit": simulated(folder, 0, 0.01)}
    with running(create_app(Settings(models=models, device="cpu", max_images=1024))) as live:
        yield live


def test_simulated_pictures_say_so(stripes: Running) -> None:
    answer = stripes.client.post("/generate?model=dit&class=猫&steps=2")
    text = recipe(answer.content)
    assert (text["simulated"], text["class"]) == ("true", "猫")
    assert again(stripes, text).content == answer.content


def test_the_header_tells_sixteen_seeds_and_json_all(stripes: Running) -> None:
    query = {"model": "dit", "class": 0, "steps": 1, "n": 1000, "seed": 7}
    answer = stripes.client.post("/generate", params=query)
    seeds = answer.headers["X-Seed"].split(",")
    assert (len(seeds), seeds[0]) == (16, "7")
    assert len(answer.headers["X-Seed"]) <= 2048
    listed = stripes.client.post("/generate", params=query | {"format": "json"}).json()["images"]
    assert [str(image["seed"]) for image in listed[:16]] == seeds
    assert len(listed) == 1000
    body = {"model": "dit", "prompt": "café", "num_inference_steps": 1, "n": 1000}
    created = stripes.client.post("/v1/images/generations", json=body)
    assert len(created.headers["X-Seed"].split(",")) == 16
    assert len(created.json()["data"]) == 1000


def test_accents_may_be_written_either_way(stripes: Running) -> None:
    for name in ("café", "cafe\u0301", " CAFÉ "):
        answer = stripes.client.post("/generate", json={"model": "dit", "class": name, "format": "json"})
        assert answer.json()["class_index"] == 1, name
