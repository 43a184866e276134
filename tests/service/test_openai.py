"""The OpenAI Images API, driven by OpenAI's own client."""

from typing import Any

import httpx
import numpy as np
import pytest

from service.web.dialects import OpenAIError
from tests.service.conftest import Running
from tests.service.pictures import decoded, opened, pixels

openai = pytest.importorskip("openai", reason="needs openai")


def plain(server: Running, **query: Any) -> np.ndarray:
    return pixels(server.client.post("/generate", params=query))


def test_models_are_listed(openai_client: Any) -> None:
    assert {model.id for model in openai_client.models.list()} == {"dit", "unet"}
    assert openai_client.models.retrieve("dit").object == "model"
    assert openai_client.models.retrieve("dit").owned_by == "Stepwise"
    with pytest.raises(openai.NotFoundError, match="no model 'nope'"):
        openai_client.models.retrieve("nope")


def test_images_are_those_of_generate(openai_client: Any, server: Running) -> None:
    extra = {"seed": 5, "num_inference_steps": 4, "guidance_scale": 2.0, "sampler": "ab2"}
    answer = openai_client.images.generate(model="unet", prompt="Cat", n=2, extra_body=extra)
    assert (answer.output_format, answer.size) == ("png", "8x8")
    assert answer.created > 1_700_000_000
    first, second = (decoded(image.b64_json) for image in answer.data)
    query = {"model": "unet", "class": "cat", "steps": 4, "guidance": 2, "sampler": "ab2"}
    assert (first == plain(server, seed=5, **query)).all()
    assert (second == plain(server, seed=answer.data[1].seed, **query)).all()


def test_every_hint_of_the_client_is_taken(openai_client: Any) -> None:
    answer = openai_client.images.generate(
        model="dit", prompt="1", n=1, size="8x8", quality="high", response_format="b64_json", style="vivid",
        user="somebody", background="opaque", moderation="low", output_format="webp",
    )  # fmt: skip
    assert opened(answer.data[0].b64_json).format == "WEBP"


@pytest.mark.parametrize(("quality", "own"), [("low", "draft"), ("standard", "default"), ("hd", "best")])
def test_qualities_are_those_of_generate(openai_client: Any, server: Running, quality: str, own: str) -> None:
    answer = openai_client.images.generate(model="dit", prompt="1", quality=quality, extra_body={"seed": 5})
    assert answer.quality == quality
    *_, last = openai_client.images.generate(model="dit", prompt="1", quality=quality, stream=True)
    assert last.quality == quality
    query = {"model": "dit", "class": "1", "seed": 5, "quality": own}
    assert (decoded(answer.data[0].b64_json) == plain(server, **query)).all()


def test_a_quality_stands_for_steps(openai_client: Any) -> None:
    extra = {"num_inference_steps": 4}
    assert openai_client.images.generate(model="dit", prompt="1", quality="auto", extra_body=extra).data
    with pytest.raises(openai.BadRequestError, match="num_inference_steps: must not come with quality"):
        openai_client.images.generate(model="dit", prompt="1", quality="high", extra_body=extra)


def test_partial_images_are_streamed_before_the_image(openai_client: Any, server: Running) -> None:
    extra = {"seed": 5, "num_inference_steps": 8}
    asked: dict[str, Any] = {"stream": True, "partial_images": 3, "extra_body": extra}
    *partial, last = openai_client.images.generate(model="dit", prompt="cat", **asked)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 3
    assert last.type == "image_generation.completed"
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    assert last.usage.total_tokens == 0
    query = {"model": "dit", "class": "cat", "steps": 8, "seed": 5}
    assert (decoded(last.b64_json) == plain(server, **query)).all()


@pytest.mark.parametrize("form", ["webp", "jpeg"])
def test_compression_is_the_quality_of_the_picture(openai_client: Any, form: str) -> None:
    extra = {"seed": 5, "num_inference_steps": 4}

    def size(compression: int) -> int:
        answer = openai_client.images.generate(
            model="dit", prompt="cat", output_format=form, output_compression=compression, extra_body=extra
        )
        return len(answer.data[0].b64_json)

    assert size(5) < size(60) < size(100)


def test_a_prompt_may_be_an_index(server: Running) -> None:
    """Class 2 is called "0": the number 0 is the first class, and the text "0" the last."""
    body = {"model": "dit", "seed": 5, "num_inference_steps": 4, "deterministic": True}
    pictures = {
        prompt: server.client.post("/v1/images/generations", json=body | {"prompt": prompt}).json()["data"][0]
        for prompt in (0, "cat", 2, "0")
    }
    assert pictures[0] == pictures["cat"]
    assert pictures[2] == pictures["0"]
    assert pictures[0] != pictures[2]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "cow"}, "prompt"),
        ({"size": "1024x1024"}, "size"),
        ({"response_format": "url"}, "response_format"),
        ({"n": 100}, "n"),
        ({"partial_images": 2}, "partial_images"),
        ({"extra_body": {"steps": 3}}, "steps"),
        ({"extra_body": {"num_inference_steps": 900}}, "num_inference_steps"),
        ({"extra_body": {"guidance_scale": -1}}, "guidance_scale"),
        ({"extra_body": {"sampler": "heun"}}, "sampler"),
        ({"model": None}, "model"),
        ({"output_compression": 50}, "output_compression"),
        ({"output_format": "jpeg", "output_compression": 101}, "output_compression"),
    ],
)
def test_bad_values_name_the_param(openai_client: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.images.generate(**{"model": "dit", "prompt": "cat"} | fields)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code == "invalid_request"
    assert param in caught.value.body["message"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": None}, "model: required: one of dit, unet"),
        ({"prompt": None}, "prompt: required: the name of a class, its index, or a mixture such as 3:0.5,8:0.5"),
        (
            {"quality": "low", "num_inference_steps": 4, "guidance_scale": 2},
            "quality: must not come with num_inference_steps, guidance_scale: it sets them itself; "
            "num_inference_steps: must not come with quality, which sets it; "
            "guidance_scale: must not come with quality, which sets it",
        ),
        (
            {"negative_prompt": "dog", "guidance_scale": 1},
            "negative_prompt: needs a guidance_scale other than 1",
        ),
        ({"prompt_to": "dog"}, "n: must be at least 2 with prompt_to, or send between for one image"),
        (
            {"sampler": "steps"},  # what the client wrote keeps its name
            "sampler: must be one of ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, euler, ab2, not 'steps'",
        ),
    ],
)
def test_messages_name_the_fields_of_this_api(server: Running, fields: dict[str, Any], said: str) -> None:
    given = {"model": "dit", "prompt": "cat"} | fields
    body = {name: value for name, value in given.items() if value is not None}
    message = server.client.post("/v1/images/generations", json=body).json()["error"]["message"]
    assert message == said


def test_other_errors_have_their_own_classes(openai_client: Any, server: Running) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        openai_client.images.generate(model="nope", prompt="cat")
    assert (caught.value.code, caught.value.param) == ("unknown_model", "model")
    for path, method, status in [("/v1/nope", "GET", 404), ("/v1/models", "PUT", 405)]:
        response = server.client.request(method, path)
        assert response.status_code == status
        OpenAIError.model_validate(response.json())


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"prompt": 3.5, "model": "dit"}'])
def test_a_body_that_is_no_request_gets_400(server: Running, body: bytes) -> None:
    response = server.client.post(
        "/v1/images/generations", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 400
    OpenAIError.model_validate(response.json())


def test_an_unknown_field_is_told_the_fields_of_this_api(server: Running) -> None:
    body = {"model": "dit", "prompt": "3", "steps": 3}
    message = server.client.post("/v1/images/generations", json=body).json()["error"]["message"]
    assert message.startswith("steps: unknown field: use prompt, model, n, size")
    assert "num_inference_steps" in message


def test_fields_in_the_query_are_refused(server: Running) -> None:
    answer = server.client.post("/v1/images/generations?n=2", json={"model": "dit", "prompt": "cat"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")


def test_a_refusal_on_the_way_raises_in_the_client(openai_client: Any, server: Running) -> None:
    """Stops the engine, so it is the last test of this file."""
    server.app.state.local.stop()
    with pytest.raises(openai.InternalServerError) as caught:
        openai_client.images.generate(model="dit", prompt="cat")
    assert (caught.value.status_code, caught.value.code) == (503, "unavailable")
    assert int(caught.value.response.headers["Retry-After"]) >= 1
    with pytest.raises(openai.InternalServerError):
        openai_client.images.generate(model="dit", prompt="cat", stream=True)
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 503
