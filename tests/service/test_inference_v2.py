"""The Open Inference Protocol, driven by Triton's own client, with and without its binary extension."""

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.dialects import InferenceError
from tests.checkpoints import CLASS_NAMES
from tests.service.conftest import Running

http = pytest.importorskip("tritonclient.http", reason="needs tritonclient")
utils = pytest.importorskip("tritonclient.utils", reason="needs tritonclient")


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with http.InferenceServerClient(server.url.removeprefix("http://")) as live:
        yield live


def tensor(name: str, values: list[int], datatype: str = "INT64", binary: bool = True) -> Any:
    array = np.array(values, utils.triton_to_np_dtype(datatype))
    made = http.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def test_health_and_metadata(client: Any, server: Running) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("dit")
    assert client.is_model_ready("dit", "1")
    assert not client.is_model_ready("nope")
    assert not client.is_model_ready("dit", "2")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    facts = client.get_model_metadata("unet", "1")
    assert (facts["name"], facts["versions"]) == ("unet", ["1"])
    assert facts["inputs"][0] == {"name": "class", "datatype": "INT64", "shape": [-1]}
    assert facts["outputs"][0] == {"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}
    # kserve's client reads the bodies
    assert server.client.get("/v2/health/live").json() == {"live": True}
    assert server.client.get("/v2/health/ready").json() == {"ready": True}
    assert server.client.get("/v2/models/dit/ready").json() == {"ready": True, "name": "dit"}


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_images_are_those_of_generate(client: Any, server: Running, binary_in: bool, binary_out: bool) -> None:
    """Each image has a class and a seed of its own, in one request."""
    inputs = [tensor("class", [2, 0], binary=binary_in), tensor("seed", [7, 8], binary=binary_in)]
    outputs = [http.InferRequestedOutput(name, binary_data=binary_out) for name in ("seed", "images")]
    parameters = {"steps": 3, "sampler": "ddim", "guidance": 1.5}
    answer = client.infer("dit", inputs, outputs=outputs, request_id="mine", parameters=parameters)
    response = answer.get_response()
    assert (response["model_name"], response["id"]) == ("dit", "mine")
    assert [output["name"] for output in response["outputs"]] == ["seed", "images"]
    assert ("data" in response["outputs"][1]) != binary_out
    assert answer.as_numpy("seed").tolist() == [7, 8]
    images = answer.as_numpy("images")
    assert (images.shape, images.dtype) == ((2, 8, 8, 3), np.uint8)
    for image, label, seed in zip(images, (2, 0), (7, 8), strict=True):
        query = {"model": "dit", "class": CLASS_NAMES[label], "seed": seed} | parameters
        png = server.client.post("/generate", params=query).content
        assert np.abs(image.astype(int) - np.array(Image.open(io.BytesIO(png)))).max() <= 1


def test_without_seeds_there_are_random_ones(client: Any) -> None:
    first, second = (client.infer("dit", [tensor("class", [1, 1], "UINT8")]) for _ in range(2))
    seeds = {*first.as_numpy("seed").tolist(), *second.as_numpy("seed").tolist()}
    assert len(seeds) == 4
    assert first.as_numpy("images").shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("inputs", "arguments", "named"),
    [
        ([], {}, "class"),
        ([("class", [3])], {}, "class"),
        ([("class", [-1])], {}, "class"),
        ([("class", [0] * 17)], {}, "n: 17"),
        ([("class", [0, 1]), ("seed", [1])], {}, "seed"),
        ([("class", [0]), ("seed", [-1])], {}, "seed"),
        ([("class", [0]), ("noise", [1])], {}, "noise"),
        ([("class", [0]), ("class", [0])], {}, "class"),
        ([("class", [0])], {"parameters": {"steps": 0}}, "steps"),
        ([("class", [0])], {"parameters": {"speed": 1}}, "speed"),
        ([("class", [0])], {"outputs": ["latents"]}, "latents"),
    ],
)
@pytest.mark.parametrize("binary", [True, False])
def test_bad_values_are_named(
    client: Any, inputs: list[tuple[str, list[int]]], arguments: dict[str, Any], named: str, binary: bool
) -> None:
    tensors = [tensor(name, values, binary=binary) for name, values in inputs]
    if "outputs" in arguments:
        arguments = {"outputs": [http.InferRequestedOutput(name) for name in arguments["outputs"]]}
    with pytest.raises(utils.InferenceServerException, match=named) as caught:
        client.infer("dit", tensors, **arguments)
    assert caught.value.status() == "400"


def test_unknown_models_and_versions(client: Any, server: Running) -> None:
    for model, version in [("nope", ""), ("dit", "2")]:
        with pytest.raises(utils.InferenceServerException, match="nope|version") as caught:
            client.infer(model, [tensor("class", [0])], model_version=version)
        assert caught.value.status() == "404"
    InferenceError.model_validate(server.client.get("/v2/nope").json())


CLASS = {"name": "class", "datatype": "INT64", "shape": [1], "data": [0]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        json.dumps({"inputs": [CLASS | {"data": [0, 1]}]}).encode(),
        json.dumps({"inputs": [CLASS | {"data": [0.5]}]}).encode(),
        json.dumps({"inputs": [CLASS | {"data": [True]}]}).encode(),
        json.dumps({"inputs": [CLASS | {"datatype": "FP32"}]}).encode(),
        json.dumps({"inputs": [CLASS | {"shape": [-1]}]}).encode(),
        json.dumps({"inputs": [CLASS | {"shape": [10**9] * 50}]}).encode(),
        json.dumps({"inputs": [CLASS | {"shape": []}]}).replace("[0]", "[]").encode(),
        b'{"inputs": [{"name": "class", "datatype": "INT64", "shape": [1], "data": '
        + b"[" * 5000
        + b"]" * 5000
        + b"}]}",
    ],
)
def test_a_body_that_is_no_request(server: Running, body: bytes) -> None:
    response = server.client.post("/v2/models/dit/infer", content=body)
    assert response.status_code == 400
    InferenceError.model_validate(response.json())


@pytest.mark.parametrize("length", ["-1", "x", "99999", "1", "9" * 5000])
def test_a_length_that_is_wrong(server: Running, length: str) -> None:
    body = json.dumps({"inputs": [CLASS]}).encode()
    headers = {"Inference-Header-Content-Length": length}
    response = server.client.post("/v2/models/dit/infer", content=body, headers=headers)
    assert response.status_code == 400


def test_bytes_that_belong_to_nobody(server: Running) -> None:
    body = json.dumps({"inputs": [CLASS]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(body))}
    response = server.client.post("/v2/models/dit/infer", content=body + b"123", headers=headers)
    assert response.status_code == 400
    assert "3 bytes belong to no input" in response.json()["error"]


def test_kserve_adds_fields_of_its_own(server: Running) -> None:
    body = {"model_name": "dit", "id": "a", "inputs": [CLASS | {"shape": [1, 1], "data": [[2]]}], "parameters": {}}
    response = server.client.post("/v2/models/dit/infer", json=body)
    assert response.status_code == 200
    assert response.json()["id"] == "a"
    assert response.headers["X-Seed"] == str(response.json()["outputs"][1]["data"][0])


@pytest.mark.parametrize("steps", [True, "5", 5.0])
def test_parameters_have_their_types(server: Running, steps: object) -> None:
    tensor = {"name": "class", "datatype": "INT64", "shape": [1], "data": [1]}
    body = {"inputs": [tensor], "parameters": {"steps": steps}}
    answer = server.client.post("/v2/models/dit/infer", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("steps: ")


def test_parameters_in_the_query_are_refused(server: Running) -> None:
    tensor = {"name": "class", "datatype": "INT64", "shape": [1], "data": [1]}
    answer = server.client.post("/v2/models/dit/infer?steps=3", json={"inputs": [tensor]})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("steps: ")
