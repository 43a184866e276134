"""One behaviour in all three APIs: byte order marks, compression, values that are wrong or too long."""

import gzip
import json
from typing import Any

import httpx
import pytest

from service.errors import MAX_ECHO
from tests.service.conftest import Running

TENSOR = {"name": "class", "datatype": "INT64", "shape": [1], "data": [0]}
APIS: dict[str, tuple[str, dict[str, Any]]] = {  # path and body
    "own": ("/generate", {"model": "dit", "class": 0}),
    "openai": ("/v1/images/generations", {"model": "dit", "prompt": "cat"}),
    "inference": ("/v2/models/dit/infer", {"inputs": [TENSOR]}),
}
OPENAI_NAMES = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
each_api = pytest.mark.parametrize("api", APIS)


def send(server: Running, api: str, content: bytes, **headers: str) -> httpx.Response:
    headers = {"Content-Type": "application/json"} | headers
    return server.client.post(APIS[api][0], content=content, headers=headers)


def name_in(api: str, field: str) -> str:
    return OPENAI_NAMES.get(field, field) if api == "openai" else field


def ask(server: Running, api: str, field: str, value: Any) -> httpx.Response:
    fields = {name_in(api, field): value}
    changed = {"parameters": fields} if api == "inference" else fields
    return send(server, api, json.dumps(APIS[api][1] | changed).encode())


def sentence(response: httpx.Response) -> str:
    """The message, in whichever dialect."""
    body = response.json()
    said = body.get("detail") or body["error"]
    return said if isinstance(said, str) else said["message"]


@each_api
def test_a_byte_order_mark_is_skipped(server: Running, api: str) -> None:
    assert send(server, api, b"\xef\xbb\xbf" + json.dumps(APIS[api][1]).encode()).status_code == 200


@each_api
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_another_encoding_than_utf_8_is_refused(server: Running, api: str, encoding: str) -> None:
    body = json.dumps(APIS[api][1] | {"x": "é"}, ensure_ascii=False).encode(encoding)
    response = send(server, api, body)
    assert response.status_code in (400, 422)
    assert "not valid JSON in UTF-8" in sentence(response)


@each_api
@pytest.mark.parametrize("body", [b"", b"{}", None])
def test_a_compressed_body_is_refused_before_it_is_read(server: Running, api: str, body: bytes | None) -> None:
    content = gzip.compress(json.dumps(APIS[api][1]).encode()) if body is None else body
    response = send(server, api, content, **{"Content-Encoding": "gzip"})
    assert (response.status_code, response.headers["Accept-Encoding"]) == (415, "identity")
    assert sentence(response).startswith("Content-Encoding: 'gzip' is not supported")


@each_api
def test_an_identity_is_no_compression(server: Running, api: str) -> None:
    content = json.dumps(APIS[api][1]).encode()
    assert send(server, api, content, **{"Content-Encoding": "identity"}).status_code == 200


@each_api
def test_the_last_of_two_equal_names_counts(server: Running, api: str) -> None:
    key = "inputs" if api == "inference" else "model"
    content = json.dumps(APIS[api][1]).replace(f'"{key}":', f'"{key}": 3, "{key}":').encode()
    assert send(server, api, content).status_code == 200


@each_api
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("steps", 0, "must be a whole number from 1 to 200, not 0"),
        ("steps", 201, "must be a whole number from 1 to 200, not 201"),
        ("steps", 2.5, "must be a whole number from 1 to 200, not 2.5"),
        ("steps", 5.0, "must be a whole number from 1 to 200, not 5.0"),
        ("steps", "5", "must be a whole number from 1 to 200, not '5'"),
        ("steps", True, "must be a whole number from 1 to 200, not true"),
        ("guidance", 21, "must be a number from 0 to 20, not 21"),
        ("guidance", "high", "must be a number from 0 to 20, not 'high'"),
        ("deadline_ms", 0, "must be a whole number from 1 to 3600000, not 0"),
        ("deterministic", 2, "must be true or false, not 2"),
        ("sampler", "heun", "must be one of ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, euler, ab2, not 'heun'"),
        ("sampler", 3, "must be text, not 3"),
    ],
)
def test_a_wrong_value_is_told_what_is_allowed(
    server: Running, api: str, field: str, value: Any, said: str
) -> None:
    response = ask(server, api, field, value)
    assert response.status_code == (422 if api == "own" else 400)
    assert sentence(response) == f"{name_in(api, field)}: {said}"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("steps=1_0", "steps: must be a whole number from 1 to 200, not '1_0'"),
        ("steps=+5", "steps: must be a whole number from 1 to 200, not ' 5'"),
        ("steps=5.0", "steps: must be a whole number from 1 to 200, not '5.0'"),
        ("steps=-1", "steps: must be a whole number from 1 to 200, not -1"),
        ("steps=", "steps: must be a whole number from 1 to 200, not ''"),
        ("steps=%D9%A3", "steps: must be a whole number from 1 to 200, not '٣'"),
        ("guidance=1_0", "guidance: must be a number from 0 to 20, not '1_0'"),
        ("guidance=nan", "guidance: must be a number from 0 to 20, not 'nan'"),
        ("guidance=1e999", "guidance: must be a number from 0 to 20, not inf"),
        ("deterministic=maybe", "deterministic: must be true or false, not 'maybe'"),
        (
            "format=gif",
            "format: must be 'png', 'webp', 'jpeg', 'npy', 'npz', 'json', 'apng' or 'webp-animation', not 'gif'",
        ),
        (
            "n=17&steps=0",
            "steps: must be a whole number from 1 to 200, not 0; n: must be a whole number from 1 to 16, not 17",
        ),
    ],
)
def test_values_of_the_query_are_read_strictly(server: Running, query: str, said: str) -> None:
    lasting = "seed=1" + ("" if "deterministic" in query else "&deterministic=true")
    for response in (
        server.client.post(f"/generate?model=dit&class=cat&{query}"),
        server.client.get(f"/generate?model=dit&class=cat&{lasting}&{query}"),
    ):
        assert (response.status_code, response.json()["detail"]) == (422, said)


LONG: list[Any] = ["x" * 20_000, int("9" * 4000), [1] * 5000, {"a" * 5000: 1}]


@each_api
@pytest.mark.parametrize("value", LONG, ids=["text", "number", "list", "object"])
@pytest.mark.parametrize("field", ["steps", "sampler", "guidance", "seed"])
def test_an_error_does_not_repeat_a_long_value(server: Running, api: str, field: str, value: Any) -> None:
    response = ask(server, api, field, value)
    assert response.status_code in (400, 422)
    assert len(sentence(response)) < 150 + MAX_ECHO


@pytest.mark.parametrize("digits", [4000, 5000])
@pytest.mark.parametrize("name", ["class", "seed"])
def test_a_number_of_thousands_of_digits_gets_a_short_answer(server: Running, name: str, digits: int) -> None:
    inputs = [TENSOR, TENSOR | {"name": "seed"}]
    text = json.dumps({"inputs": [t if t["name"] != name else t | {"data": ["HERE"]} for t in inputs]})
    response = send(server, "inference", text.replace('"HERE"', "9" * digits).encode())
    assert response.status_code == 400
    assert len(response.content) < 200


@each_api
def test_names_that_utf_8_cannot_write_are_answered(server: Running, api: str) -> None:
    """Half a surrogate pair, which JSON can spell."""
    field = b'"parameters": {"\\ud800": 1}' if api == "inference" else b'"\\ud800": 1'
    content = json.dumps(APIS[api][1]).encode()[:-1] + b", " + field + b"}"
    assert send(server, api, content).status_code in (400, 422)
