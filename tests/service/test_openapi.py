"""The OpenAPI document: what client generators need of it, and the service held against it by schemathesis.

The simulated models answer at once, so that hundreds of requests cost seconds.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.local import create_app
from service.settings import Settings
from tests.service.conftest import Running, running, tiny_settings
from tests.service.networks import simulated
from tests.service.process import ROOT

# What a schema cannot say: which class names a model has, which fields go together, and that a millisecond is a
# deadline which nobody meets.
CONFIGURATION = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "406", "422", "503", "504"]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]
"""


@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="needs schemathesis")
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    models = {name: simulated(ROOT / "checkpoints" / name, 1, 0.01) for name in ("dit", "unet")}
    script = Path(sys.executable).with_name("schemathesis")
    options = ["--checks", "all", "--seed", "1", "--max-examples", "20"]
    with running(create_app(Settings(models=models, device="cpu"))) as live:
        command = [script, "run", *options, f"{live.url}/openapi.json"]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        answered = live.metric("diffusion_requests_total", outcome="ok")
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", ended.stdout)
    assert tested is not None
    assert int(tested[1]) >= 17
    assert answered > 20  # not all requests were refused


KEY = "alice-has-a-secret-key"


def operations(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By "METHOD path"."""
    return {
        f"{method.upper()} {path}": operation
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    }


def test_functions_of_generated_clients_have_readable_names(server: Running) -> None:
    found = operations(server.client.get("/openapi.json").json())
    names = {place: operation["operationId"] for place, operation in found.items()}
    assert len(set(names.values())) == len(names)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in names.values())
    assert names["POST /generate"] == "generate"
    assert names["POST /v1/images/generations"] == "create_image"
    tags = {tag for operation in found.values() for tag in operation["tags"]}
    assert tags == {"Stepwise", "OpenAI Images", "Open Inference", "Operations"}
    assert all(len(operation["tags"]) == 1 for operation in found.values())


def test_required_fields_are_marked(server: Running) -> None:
    schema = server.client.get("/openapi.json").json()
    components = schema["components"]["schemas"]
    assert components["GenerateBody"]["required"] == ["model"]
    assert components["ImageRequest"]["required"] == ["model", "prompt"]
    assert components["GenerateBody"]["properties"]["model"]["type"] == "string"  # and not null
    query = operations(schema)["GET /generate"]["parameters"]
    required = {parameter["name"] for parameter in query if parameter["required"]}
    assert required == {"model", "seed", "deterministic"}  # and a class, but for those who send an image
    for name, fields in (("GenerateBody", ("model",)), ("ImageRequest", ("model", "prompt"))):
        for field in fields:
            assert "null" not in str(components[name]["properties"][field])
    for path in ("/generate", "/v1/images/generations"):
        assert operations(schema)[f"POST {path}"]["requestBody"]["required"] is True


def test_the_document_has_one_name_and_holds_behind_a_prefix(server: Running) -> None:
    schema = server.client.get("/openapi.json").json()
    assert schema["info"]["title"] == "Stepwise"
    at = httpx.URL("https://example.org/pictures/openapi.json")
    assert str(at.join(schema["servers"][0]["url"])) == "https://example.org/pictures/"


def test_no_page_of_this_service_loads_scripts_from_elsewhere(server: Running) -> None:
    for path in ("/docs", "/redoc"):
        assert server.client.get(path).status_code == 404


def test_keys_are_in_the_document_where_there_are_keys(server: Running, checkpoints: Path) -> None:
    assert "security" not in str(server.client.get("/openapi.json").json())
    with running(create_app(tiny_settings(checkpoints, api_keys={"alice": {"key": KEY}}))) as locked:
        schema = locked.client.get("/openapi.json").json()
        schemes = schema["components"]["securitySchemes"]
        assert {name for choice in schema["security"] for name in choice} == set(schemes)
        sent = {"bearer": {"Authorization": f"Bearer {KEY}"}, "header": {schemes["header"]["name"]: KEY}}
        assert set(sent) == set(schemes)
        for headers in sent.values():
            assert locked.client.get("/models", headers=headers).status_code == 200
        for place, operation in operations(schema).items():
            method, path = place.split()
            path = path.format(model="dit", version="1")
            answer = locked.client.request(method, path)
            is_open = operation.get("security") == []
            assert (answer.status_code == 401) != is_open, place
            assert ("401" in operation["responses"]) != is_open, place
