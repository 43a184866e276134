"""The Open Inference Protocol, driven by Triton's own client, with and without its binary extension."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from service.observe.metrics import Metrics
from service.web.dialects import InferenceError
from service.web.generation import RequestHandler
from service.web.routes.inference_v2 import EXTENSIONS
from tests.checkpoints import CLASS_NAMES
from tests.service.conftest import Running
from tests.service.pictures import difference, pixels
from tests.waiting import wait_until

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


def test_health_and_metadata_are_those_of_the_protocol(client: Any, server: Running) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("dit")
    assert client.is_model_ready("dit", "1")
    assert not client.is_model_ready("nope")
    assert not client.is_model_ready("dit", "2")
    server_metadata = client.get_server_metadata()
    assert (server_metadata["name"], server_metadata["extensions"]) == ("Stepwise", EXTENSIONS)
    facts = client.get_model_metadata("unet", "1")
    assert (facts["name"], facts["versions"]) == ("unet", ["1"])
    assert facts["inputs"] == [
        {"name": "class", "datatype": "INT64", "shape": [-1], "parameters": {"class_names": CLASS_NAMES}},
        {"name": "seed", "datatype": "INT64", "shape": [-1]},
    ]
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
        assert difference(image, pixels(server.client.post("/generate", params=query))) <= 1


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
        ([("class", [0] * 17)], {}, "class: must have from 1 to 16 elements, not 17"),
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


def test_unknown_models_and_versions_get_404(client: Any, server: Running) -> None:
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
def test_a_body_that_is_no_request_gets_400(server: Running, body: bytes) -> None:
    response = server.client.post("/v2/models/dit/infer", content=body)
    assert response.status_code == 400
    InferenceError.model_validate(response.json())


@pytest.mark.parametrize(
    ("shape", "said"),
    [([3], "must have 3 elements, as its shape [3], not 2"), ([1], "must have 1 element, as its shape [1], not 2")],
)
def test_a_tensor_of_another_size_than_its_shape(server: Running, shape: list[int], said: str) -> None:
    body = {"inputs": [CLASS | {"shape": shape, "data": [0, 1]}]}
    assert server.client.post("/v2/models/dit/infer", json=body).json() == {"error": f"class: {said}"}


@pytest.mark.parametrize("length", ["-1", "x", "99999", "1", "9" * 5000])
def test_a_wrong_length_of_the_header_gets_400(server: Running, length: str) -> None:
    body = json.dumps({"inputs": [CLASS]}).encode()
    headers = {"Inference-Header-Content-Length": length}
    response = server.client.post("/v2/models/dit/infer", content=body, headers=headers)
    assert response.status_code == 400


def test_bytes_that_belong_to_no_input_are_refused(server: Running) -> None:
    body = json.dumps({"inputs": [CLASS]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(body))}
    response = server.client.post("/v2/models/dit/infer", content=body + b"123", headers=headers)
    assert response.status_code == 400
    assert "3 bytes belong to no input" in response.json()["error"]


def test_fields_that_kserve_adds_are_accepted(server: Running) -> None:
    body = {"model_name": "dit", "id": "a", "inputs": [CLASS | {"shape": [1, 1], "data": [[2]]}], "parameters": {}}
    response = server.client.post("/v2/models/dit/infer", json=body)
    assert response.status_code == 200
    assert response.json()["id"] == "a"
    assert response.headers["X-Seed"] == str(response.json()["outputs"][1]["data"][0])


def test_parameters_in_the_query_are_refused(server: Running) -> None:
    answer = server.client.post("/v2/models/dit/infer?steps=3", json={"inputs": [CLASS]})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("steps: ")


def test_statistics_count_images_requests_and_times(client: Any, server: Running) -> None:
    def stats(*version: str) -> dict[str, Any]:
        [found] = client.get_inference_statistics("unet", *version)["model_stats"]
        return found

    before = stats()
    client.infer("unet", [tensor("class", [1, 1, 0])], parameters={"steps": 4})
    after = stats("1")
    assert (after["name"], after["version"]) == ("unet", "1")
    assert after["inference_count"] - before["inference_count"] == 3
    took = after["inference_stats"]
    for name in ("success", "queue", "compute_infer", "compute_output"):
        assert took[name]["count"] - before["inference_stats"][name]["count"] == 1
        assert took[name]["ns"] >= before["inference_stats"][name]["ns"]
    assert took["success"]["ns"] >= took["queue"]["ns"] + took["compute_infer"]["ns"]
    wait_until(lambda: stats()["execution_count"] >= before["execution_count"] + 4)
    everything = client.get_inference_statistics()["model_stats"]
    assert [model["name"] for model in everything] == ["dit", "unet"]


def test_the_configuration_names_inputs_and_outputs(client: Any) -> None:
    config = client.get_model_config("dit", "1")
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("dit", "stepwise", 0)
    assert config["input"] == [
        {"name": "class", "data_type": "TYPE_INT64", "dims": [-1]},
        {"name": "seed", "data_type": "TYPE_INT64", "dims": [-1]},
    ]
    assert config["output"][0] == {"name": "images", "data_type": "TYPE_UINT8", "dims": [-1, 8, 8, 3]}
    for ask in (client.get_model_config, client.get_inference_statistics):
        with pytest.raises(utils.InferenceServerException, match="no model 'nope'"):
            ask("nope")


def test_the_repository_index_lists_the_ready_models(client: Any, server: Running) -> None:
    ready = [{"name": name, "version": "1", "state": "READY", "reason": ""} for name in ("dit", "unet")]
    assert client.get_model_repository_index() == ready
    assert server.client.post("/v2/repository/index", json={"ready": True}).json() == ready


def test_the_repository_index_takes_any_whitespace(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RequestHandler, "unreadiness", lambda self: "warming up")
    for body, count in ((b'{"ready":\n true}', 0), (b"", 2)):
        assert len(server.client.post("/v2/repository/index", content=body).json()) == count


def test_statistics_read_no_registry(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan of all series for each number took 18 ms, in which no other request was served."""
    monkeypatch.setattr(Metrics, "collect", lambda self: 1 / 0)
    assert len(server.client.get("/v2/models/stats").json()["model_stats"]) == 2


@pytest.mark.parametrize("parameters", [{"quality": "draft"}, {"steps": 3, "spacing": "shifted"}])
def test_spacing_and_quality_are_those_of_generate(
    client: Any, server: Running, parameters: dict[str, Any]
) -> None:
    answer = client.infer("dit", [tensor("class", [0]), tensor("seed", [7])], parameters=parameters)
    query = {"model": "dit", "class": CLASS_NAMES[0], "seed": 7} | parameters
    assert difference(answer.as_numpy("images")[0], pixels(server.client.post("/generate", params=query))) <= 1


def test_the_timeout_of_the_client_is_a_deadline(client: Any) -> None:
    answer = client.infer("dit", [tensor("class", [0])], timeout=60_000_000, priority=0, parameters={"steps": 2})
    assert answer.as_numpy("images").shape == (1, 8, 8, 3)
    with pytest.raises(utils.InferenceServerException, match="timeout: the deadline") as caught:
        client.infer("dit", [tensor("class", [0])], timeout=1, parameters={"steps": 200})
    assert caught.value.status() in ("503", "504")  # by the engine's estimate, or by the clock


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"priority": 1}, "priority: must be 0, because requests have no priorities here, not 1"),
        (
            {"priority": 0, "timeout": 0},
            "timeout: must be a whole number from 1 to 3600000000 (microseconds), not 0",
        ),
        ({"timeout": "1"}, "timeout: must be a whole number from 1 to 3600000000 (microseconds), not '1'"),
        ({"timeout": True}, "timeout: must be a whole number from 1 to 3600000000 (microseconds), not true"),
        ({"timeout": 5, "deadline_ms": 5}, "timeout: give timeout, in microseconds, or deadline_ms, but not both"),
        ({"steps": None}, "parameters.steps: must be true, false, a number or text, not None"),
        ({"steps": [1]}, "parameters.steps: must be true, false, a number or text, not [1]"),
    ],
)
def test_a_refused_parameter_says_what_is_allowed(server: Running, parameters: dict[str, Any], said: str) -> None:
    answer = server.client.post("/v2/models/dit/infer", json={"inputs": [CLASS], "parameters": parameters})
    assert (answer.status_code, answer.json()["error"]) == (400, said)


def test_shared_memory_and_classification_are_refused(client: Any) -> None:
    shared = http.InferRequestedOutput("images")
    shared.set_shared_memory("region", 192)
    sorted_ = http.InferRequestedOutput("images", class_count=3)
    for output, said in ((shared, "cannot be written to shared memory"), (sorted_, "has no classes to sort")):
        with pytest.raises(utils.InferenceServerException, match=said):
            client.infer("dit", [tensor("class", [0])], outputs=[output])
    given = http.InferInput("class", [1], "INT64")
    given.set_shared_memory("region", 8)
    with pytest.raises(utils.InferenceServerException, match="cannot be read from shared memory"):
        client.infer("dit", [given])


def test_a_compressed_request_of_the_client_is_refused(client: Any) -> None:
    with pytest.raises(utils.InferenceServerException, match="without compression") as caught:
        client.infer("dit", [tensor("class", [0])], request_compression_algorithm="gzip")
    assert caught.value.status() == "415"
