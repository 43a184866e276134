"""stepwise.load and stepwise.connect: both give the same pictures, from a checkpoint and from a service."""

import asyncio
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

import stepwise
from models.checkpoint import CheckpointError
from models.sampling import first_noise
from service.errors import AnswerTooLarge, InvalidRequest, QuotaExceeded, ServiceError, Unauthorized, UnknownModel
from service.loaded_model import Model
from service.local import create_app
from service.python_api import Preview
from service.remote_model import RemoteModel
from tests.checkpoints import TINY, write_checkpoint
from tests.service.conftest import Running, running, tiny_settings
from tests.service.pictures import difference, frames
from tests.service.process import ROOT, run_program

IMAGE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8))
MASK = Image.fromarray(np.random.default_rng(2).random((8, 8)) < 0.5)
HOW: dict[str, Any] = {"seed": 5, "n": 2, "steps": 6, "guidance": 2.0, "sampler": "ddpm"}


@pytest.fixture(scope="module", params=["dit", "unet"])
def local(checkpoints: Path, request: pytest.FixtureRequest) -> Model:
    return stepwise.load(checkpoints / request.param, device="cpu", dtype="float32")


@pytest.fixture
def remote(server: Running, local: Model) -> Iterator[RemoteModel]:
    with stepwise.connect(server.url, local.name) as model:
        yield model


def test_both_say_the_same_about_a_model(local: Model, remote: RemoteModel) -> None:
    for name in ("name", "class_names", "image_shape", "samplers"):
        assert getattr(local, name) == getattr(remote, name)
    assert local.qualities.keys() == remote.qualities.keys()
    assert repr(local) == f"Model('{local.name}', 3 classes, (3, 8, 8))"


@pytest.mark.parametrize(
    "more", [{}, {"image": IMAGE, "strength": 0.5}, {"image": IMAGE, "mask": MASK}], ids=["plain", "image", "mask"]
)
def test_both_draw_the_same_pictures(local: Model, remote: RemoteModel, more: dict[str, Any]) -> None:
    here, there = (model.sample("cat", **HOW, **more) for model in (local, remote))
    assert [(image.mode, image.size) for image in here] == [("RGB", (8, 8))] * 2
    for own, served in zip(here, there, strict=True):
        assert difference(np.array(own), np.array(served)) <= 1
        assert own.info == served.info  # the recipe
    assert here[0].info["seed"] == "5"
    assert (np.array(here[0]) != np.array(here[1])).any()
    if "mask" in more:
        kept = ~np.array(MASK)
        assert (np.array(here[0])[kept] == np.array(IMAGE)[kept]).all()


WAY: dict[str, Any] = {"class_": {"cat": 1, "dog": 3}, "class_to": "dog", "seed_to": 9}


@pytest.mark.parametrize("more", [{}, WAY], ids=["cat", "way"])
def test_both_tell_the_same_trajectory(local: Model, remote: RemoteModel, more: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"class_": "cat"} | HOW | more
    here, there = (model.trajectory(**asked) for model in (local, remote))
    for name in ("x", "denoised", "noise", "times", "images", "seeds", "labels"):
        own, served = getattr(here, name), getattr(there, name)
        assert (own.dtype, own.shape) == (served.dtype, served.shape)
        tolerance = 1 if name == "images" else 2e-5  # as in tests/service/engine/test_mixed_batch.py
        np.testing.assert_allclose(own.astype(float), served, rtol=0 if name == "images" else 2e-5, atol=tolerance)
    assert here.recipe == there.recipe
    assert here.x.shape == (2, 7, 3, 8, 8)
    assert np.abs(here.noise[:, :-1]).max() > 1
    for image, plain in zip(here.images, local.sample(**asked), strict=True):
        assert (image == np.array(plain)).all()
    assert here.recipe.get("seed_to") == (str(WAY["seed_to"]) if more else None)


def test_a_trajectory_begins_on_the_way(local: Model) -> None:
    how: dict[str, Any] = HOW | {"n": 3}
    told = local.trajectory("cat", **how, seed_to=9)
    assert told.labels.tolist() == [0, 0, 0]
    own, other = (first_noise(torch.tensor([seed]), (3, 8, 8))[0].numpy() for seed in (5, 9))
    between = math.sqrt(0.5) * (own + other)
    np.testing.assert_allclose(told.x[:, 0], np.stack([own, between, other]), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["cat.webp", "cat.png", "cat.APNG"])
@pytest.mark.parametrize("masked", [False, True])
def test_both_save_the_same_animation(
    local: Model, remote: RemoteModel, tmp_path: Path, name: str, masked: bool
) -> None:
    more: dict[str, Any] = {"image": IMAGE, "mask": MASK} if masked else {}
    found = []
    for model in (local, remote):
        path = tmp_path / type(model).__name__ / name
        path.parent.mkdir()
        model.save_animation(path, "cat", **HOW, **more)
        with Image.open(path) as file:
            assert file.format == ("WEBP" if name == "cat.webp" else "PNG")
        found.append(frames(path.read_bytes()))
    here, there = found
    assert len(here) == len(there) == HOW["steps"] + (name != "cat.webp")
    for own, served in zip(here, there, strict=True):
        assert difference(own, served) <= 1
    plain = [np.array(image) for image in local.sample("cat", **HOW, **more)]
    assert (here[-1] == np.concatenate(plain, axis=1)).all()


def test_both_refuse_wrong_trajectories_and_animations(local: Model, remote: RemoteModel, tmp_path: Path) -> None:
    for model in (local, remote):
        with pytest.raises(ValueError, match=r"path: must end in \.png, \.apng, \.webp, not"):
            model.save_animation(tmp_path / "cat.gif", "cat")
        with pytest.raises(InvalidRequest, match="class: must be one of"):
            model.trajectory("cow")
    with pytest.raises(AnswerTooLarge, match="n: n x steps may be at most 16384"):
        local.trajectory("cat", n=1000, steps=1000)


BETWEEN: dict[str, tuple[Any, dict[str, Any]]] = {
    "mixture": ({"cat": 1, "dog": 3}, {}),
    "indices": ({0: 1, 1: 3}, {}),
    "list": (["cat", {0: 0.5, "dog": 0.5}], {}),
    "tuple": (("cat", 1), {"n": None}),
    "negative": ("cat", {"negative_class": "dog"}),
    "classes": ("cat", {"class_to": {"dog": 1, 2: 1}, "n": 3}),
    "seeds": ("cat", {"seed_to": 9, "n": 3, "sampler": "dpmpp_2m"}),
    "all": (
        {"cat": 1, "dog": 1},
        {"class_to": 2, "seed_to": 9, "n": 3, "negative_class": 1, "sampler": "dpmpp_2m"},
    ),
    "one": ("cat", {"class_to": "dog", "seed_to": 9, "n": None, "between": 0.25}),
}


@pytest.mark.parametrize(("class_", "more"), BETWEEN.values(), ids=BETWEEN.keys())
def test_both_draw_the_same_between(local: Model, remote: RemoteModel, class_: Any, more: dict[str, Any]) -> None:
    here, there = (model.sample(class_, **HOW | more) for model in (local, remote))
    assert len(here) == len(there) == (more.get("n", 2) or (1 if "between" in more else 2))
    for own, served in zip(here, there, strict=True):
        assert difference(np.array(own), np.array(served)) <= 1
        assert own.info == served.info  # the recipe
    assert len({np.array(image).tobytes() for image in here}) == len(here)


def test_a_recipe_gives_the_picture_again(local: Model) -> None:
    first = local.sample(1)[0]  # a class by its index, and a random seed
    again = local.sample(first.info["class"], seed=int(first.info["seed"]))[0]
    assert (np.array(first) == np.array(again)).all()


def test_previews_come_on_the_way(local: Model, remote: RemoteModel) -> None:
    found: list[dict[tuple[int, int], Preview]] = []
    for model in (local, remote):
        seen: list[Preview] = []
        plain, watched = model.sample("dog", **HOW), model.sample("dog", **HOW, on_preview=seen.append, previews=2)
        for one, other in zip(plain, watched, strict=True):
            assert difference(np.array(one), np.array(other)) <= 1
        found.append({(preview.index, preview.step): preview for preview in seen})
    here, there = found
    assert sorted(here) == sorted(there) == [(0, 2), (0, 4), (1, 2), (1, 4)]
    for key, preview in here.items():
        assert difference(np.array(preview.image), np.array(there[key].image)) <= 1


@pytest.mark.parametrize(
    ("class_", "options", "message"),
    [
        ("cow", {}, "class: must be one of cat, dog"),
        ("cat", {"n": 0}, "n: must be a whole number from 1 to"),
        ("cat", {"steps": 1.5}, "steps: must be a whole number from 1 to"),
        ("cat", {"sampler": "consistency"}, "sampler: must be one of"),
        ("cat", {"colour": "red"}, "colour: unknown field"),
        ("cat", {"strength": 0.5}, "strength: needs an image"),
        ({"cat": 0}, {}, "class: a weight must be a number above 0"),
        ({"cow": 1}, {}, "class: must be one of cat, dog"),
        (["cat", ["dog"]], {}, "class: must be the name of a class"),
        (["cat", "dog"], {"n": 3}, "n: must be 2, as many as there are classes"),
        ("cat", {"class_to": ["dog"], "n": 2}, "class_to: must be the name of a class"),
        ("cat", {"seed_to": 9}, "n: must be at least 2 with seed_to"),
        ("cat", {"negative_class": "dog", "guidance": 1.0}, "negative_class: needs a guidance other than 1"),
        ("cat", {"image": IMAGE.resize((4, 4))}, "image: must be 8 x 8 pixels, not 4 x 4"),
        ("cat", {"image": "cat.png"}, "image: must be an image of PIL, not str"),
        ("cat", {"image": IMAGE, "mask": np.array(MASK)}, "mask: must be an image of PIL, not ndarray"),
        (
            "cat",
            {"image": IMAGE.convert("CMYK")},
            "image: must be gray or RGB with 8 bits a channel, not of mode",
        ),
        ("cat", {"model": "other"}, "model: unknown field: use class_"),
        ("cat", {"format": "npz"}, "format: unknown field: use class_"),
        ({"cat", "dog"}, {}, "class: must be text, a number, a dict or a list, not set"),
        ("cat", {"on_preview": print, "previews": -1}, "preview: must be a whole number from 0 to 64"),
    ],
    ids=[
        *("class", "n", "steps", "sampler", "unknown", "strength", "weight", "mixed", "nested", "listed", "to"),
        *("seed", "negative", "image", "path", "array", "mode", "model", "format", "object", "previews"),
    ],
)
def test_both_raise_the_same_errors(
    local: Model, remote: RemoteModel, class_: Any, options: dict[str, Any], message: str
) -> None:
    for model in (local, remote):
        with pytest.raises(InvalidRequest) as caught:
            model.sample(class_, **options)
        assert str(caught.value).startswith(message)
        assert caught.value.errors[0].field == message.partition(":")[0]


def test_numbers_of_numpy_are_numbers(local: Model, remote: RemoteModel) -> None:
    """Seeds and labels of a trajectory are, and come back in the next request."""
    told = local.trajectory(["cat", "dog"], seed=5, steps=2)
    numbers: dict[str, Any] = {"class_": told.labels, "seed": told.seeds[0], "steps": np.int32(2)}
    for model in (local, remote):
        for image, right in zip(model.sample(**numbers), told.images, strict=True):
            assert difference(np.array(image), right) <= 1


def test_deterministic_and_deadline_are_for_a_service_only(local: Model, remote: RemoteModel) -> None:
    first, again = (remote.sample("cat", seed=1, deterministic=True, deadline_ms=600_000) for _ in range(2))
    assert first[0].info["deterministic"] == "true"
    assert difference(np.array(first[0]), np.array(again[0])) == 0
    refused: tuple[dict[str, Any], ...] = ({"deterministic": True}, {"deadline_ms": 1})
    for more in refused:
        with pytest.raises(InvalidRequest, match=r"is for a running service: see stepwise\.connect"):
            local.sample("cat", **more)
    unknown: dict[str, Any] = {"colour": "red"}
    for model, takes in ((local, False), (remote, True)):
        with pytest.raises(InvalidRequest, match="colour: unknown field: use class_") as raised:
            model.sample("cat", **unknown)
        assert [name in str(raised.value) for name in ("deterministic", "deadline_ms")] == [takes] * 2


def test_samples_can_be_awaited_in_an_event_loop(local: Model) -> None:
    async def both() -> list[list[Image.Image]]:
        return [*await asyncio.gather(local.sample_async("cat", seed=1), local.sample_async("dog", seed=1))]

    (cat,), (dog,) = asyncio.run(both())
    assert difference(np.array(cat), np.array(local.sample("cat", seed=1)[0])) == 0
    assert difference(np.array(cat), np.array(dog)) > 0


def test_what_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as raised:
        stepwise.load("nope")
    looked = f"{ROOT}/checkpoints/nope and {tmp_path}/nope; {ROOT}/checkpoints has dit, unet"
    assert str(raised.value) == f"no checkpoint 'nope': looked for config.json in {looked}"
    assert stepwise.load("dit").class_names == list("0123456789")  # a shipped one, by its name
    with pytest.raises(ValueError, match="device: must be one of auto, cpu, cuda, not 'tpu'"):
        stepwise.load("dit", device="tpu")
    with pytest.raises(ValueError, match="dtype: must be one of auto, float32, bfloat16, float16, not 'int8'"):
        stepwise.load("dit", dtype="int8")  # it would be bfloat16
    with pytest.raises(ValueError, match="dtype: must be one of auto, float32, .*, not 'int3'"):
        stepwise.load("dit", dtype="int3")


def test_without_cuda_the_error_names_the_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="^device is cuda, but torch finds no CUDA device: use cpu or auto$"):
        stepwise.load("dit", device="cuda")


def test_unknown_models_and_keys_are_told(server: Running, checkpoints: Path) -> None:
    with pytest.raises(UnknownModel, match="there is no model 'cow' at http.*, only dit, unet"):
        stepwise.connect(server.url, "cow")
    key = "alice-has-a-secret-key"
    with running(create_app(tiny_settings(checkpoints, api_keys={"alice": {"key": key}}))) as live:
        live.client.headers["X-API-Key"] = key
        with pytest.raises(Unauthorized):
            stepwise.connect(live.url, "dit")
        with stepwise.connect(live.url, "dit", key=key) as model:
            assert len(model.sample("cat")) == 1


def test_without_patience_an_answer_may_still_take_its_time(server: Running) -> None:
    with stepwise.connect(server.url, "dit", patience=0) as model:
        assert len(model.sample("cat")) == 1


class Answers(httpx.BaseTransport):
    """Gives these answers one after the other."""

    def __init__(self, *answers: httpx.Response):
        self.answers = list(answers)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self.answers.pop(0)


def refusal(milliseconds: int) -> httpx.Response:
    problem = {"type": "urn:problem:quota-exceeded", "detail": "too many", "retry_after_ms": milliseconds}
    return httpx.Response(429, json=problem)


def with_answers(remote: RemoteModel, *answers: httpx.Response, patience: float = 60.0) -> None:
    remote._http.close()
    remote._http, remote._patience = httpx.Client(base_url="http://x", transport=Answers(*answers)), patience


def test_a_busy_service_is_asked_again_when_it_says(remote: RemoteModel, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    with_answers(remote, refusal(200), refusal(300), httpx.Response(200, json={"images": []}))
    assert remote.sample("cat") == []
    assert [0.2 <= slept[0] <= 0.24, 0.3 <= slept[1] <= 0.36] == [True, True]


def test_a_wait_beyond_the_patience_raises(remote: RemoteModel) -> None:
    with_answers(remote, refusal(5000), patience=1.0)
    with pytest.raises(QuotaExceeded, match="too many"):
        remote.sample("cat")


def test_the_text_of_a_proxy_is_in_the_error(remote: RemoteModel) -> None:
    with_answers(remote, httpx.Response(502, text="<html>bad gateway</html>"))
    with pytest.raises(ServiceError, match="status 502: <html>bad gateway"):
        remote.sample("cat")


def test_without_httpx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ImportError, match=r"pip install 'stepwise-diffusion\[client\]'"):
        stepwise.connect("http://localhost:1", "dit")


def test_the_command_loads_neither_torch_nor_pillow() -> None:
    program = "import sys, stepwise; print(sorted({'torch', 'PIL', 'numpy'} & set(sys.modules)))"
    done = run_program(program)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({}, 1),
        ({"sampler": "consistency"}, 1),
        ({"sampler": "ddim"}, 10),
        ({"sampler": "ddim", "steps": 3}, 3),
        ({"quality": "best"}, 4),
    ],
)
def test_the_steps_of_the_model_are_those_of_its_own_sampler(
    tmp_path: Path, fields: dict[str, Any], steps: int
) -> None:
    """One jump is enough for a picture, one step of another sampler is not."""
    sampling = {"sampler": "consistency", "steps": 1}
    more = {"qualities": {"best": {"sampler": "dpmpp_2m", "steps": 4}}, "guidance_range": (1.0, 3.0)}
    folder = write_checkpoint(
        tmp_path / "dit", "dit", arguments=TINY["dit"] | {"few_step": True}, sampling=sampling, **more
    )
    [image] = stepwise.load(folder, device="cpu").sample("cat", seed=1, **fields)
    assert image.info["steps"] == str(steps)


def test_jumps_take_two_steps_where_the_model_has_another_sampler(tmp_path: Path) -> None:
    arguments = TINY["dit"] | {"few_step": True}
    folder = write_checkpoint(tmp_path / "dit", "dit", arguments=arguments, guidance_range=(1.0, 3.0))
    [image] = stepwise.load(folder, device="cpu").sample("cat", seed=1, sampler="consistency")
    assert image.info["steps"] == "2"
