"""Health, metrics, the list of models, OpenAPI."""

import asyncio
from pathlib import Path

import httpx
import jsonschema
import numpy as np
import pytest
import torch

from service.errors import GENERATE_PROBLEMS
from service.local import create_app
from service.observe.scoreboard import OUTCOMES
from service.web.schemas import FIELD_NAMES
from tests.checkpoints import write_checkpoint
from tests.service.conftest import Running, running, tiny_settings
from tests.waiting import wait_until

HISTOGRAMS = [
    "diffusion_request_duration_seconds",
    "diffusion_request_queue_seconds",
    "diffusion_request_denoise_seconds",
]


def test_histogram_counts_equal_requests_sent(server: Running) -> None:
    def counts() -> list[tuple[float, ...]]:
        return [tuple(server.metric(f"{name}_count", model=m) for name in HISTOGRAMS) for m in ("dit", "unet")]

    def step_rows(model: str) -> float:
        return server.metric("diffusion_step_rows_sum", model=model)

    before, rows = counts(), step_rows("dit")
    steps = server.metric("diffusion_step_duration_seconds_count", model="dit")
    for model, times in (("dit", 3), ("unet", 2)):
        for _ in range(times):
            query = {"model": model, "class": "cat", "steps": 4, "guidance": 2, "n": 2}
            assert server.client.post("/generate", params=query).status_code == 200
    assert (np.array(counts()) - before).tolist() == [[3, 3, 3], [2, 2, 2]]
    # 3 requests x 2 images x 4 steps x 2 rows; both images of a request share a forward
    wait_until(lambda: step_rows("dit") == rows + 48)
    assert server.metric("diffusion_step_duration_seconds_count", model="dit") == steps + 12


def test_counters_of_images_and_evaluations(server: Running) -> None:
    names = {"diffusion_images_total": 3, "diffusion_evaluations_total": 15, "diffusion_requests_total": 1}
    before = {name: server.metric(name, model="unet") for name in names}
    server.client.post("/generate", params={"model": "unet", "class": "cat", "n": 3, "steps": 5, "guidance": 1})
    wait_until(lambda: {n: server.metric(n, model="unet") - before[n] for n in names} == names)


def test_refused_input_is_not_a_request(server: Running) -> None:
    before = server.metric("diffusion_requests_total", model="dit")
    server.client.post("/generate", params={"model": "dit", "class": "cat", "steps": 0})
    assert server.metric("diffusion_requests_total", model="dit") == before


def test_every_label_set_exists_from_the_start(checkpoints: Path) -> None:
    with running(create_app(tiny_settings(checkpoints))) as fresh:
        for model in ("dit", "unet"):
            for outcome in OUTCOMES:
                assert fresh.metric("diffusion_requests_total", model=model, outcome=outcome) == 0
            for gauge in ("queue_depth", "running_slots", "backlog_seconds"):
                assert fresh.metric(f"diffusion_{gauge}", model=model) == 0
            assert fresh.metric("diffusion_model_info", model=model, dtype="float32") == 1
            assert fresh.metric("diffusion_cancelled_evaluations_saved_total", model=model) == 0


def test_models_describe_what_is_served(server: Running) -> None:
    dit, unet = server.client.get("/models").json()["models"]
    assert (dit["name"], unet["name"]) == ("dit", "unet")
    assert dit["class_names"] == ["cat", "dog", "0"]
    assert dit["image_shape"] == [3, 8, 8]
    assert dit["max_rows"] == 6
    assert len(dit["weights_sha256"]) == 64
    assert "euler" in dit["samplers"]


def test_only_flow_models_offer_euler(tmp_path: Path, checkpoints: Path) -> None:
    write_checkpoint(tmp_path / "vp", "dit", schedule="cosine", prediction="v")
    with running(create_app(tiny_settings(tmp_path))) as live:
        assert "euler" not in live.card("vp")["samplers"]
        refused = live.client.post("/generate?model=vp&class=0&sampler=euler")
        assert refused.status_code == 422
        assert "ddim" in refused.json()["detail"]
        assert live.client.post("/generate?model=vp&class=0&sampler=ddim").status_code == 200


def test_health_paths_answer_ok(server: Running) -> None:
    for path in ("/livez", "/readyz"):
        response = server.client.get(path)
        assert (response.status_code, response.json()["status"]) == (200, "ok")


def test_not_ready_before_warm_up(checkpoints: Path) -> None:
    """The server answers while it warms up: alive, not ready, and refusing work."""
    app = create_app(tiny_settings(checkpoints))
    transport = httpx.ASGITransport(app)  # without the lifespan the engine never starts

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            calls = [client.get("/livez"), client.get("/readyz"), client.post("/generate?model=dit&class=0")]
            return [await call for call in calls]

    live, ready, refused = asyncio.run(ask())
    app.state.local.stop()
    assert (live.status_code, ready.status_code, refused.status_code) == (200, 503, 503)
    assert refused.headers["Retry-After"] == "1"


def test_a_dead_engine_turns_liveness_red_and_answers_everyone(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(tiny_settings(checkpoints))
    with running(app) as live:

        def broken() -> None:
            raise RuntimeError("the device is gone")

        monkeypatch.setattr(app.state.local.core, "step", broken)
        refused = live.client.post("/generate?model=dit&class=0")
        assert refused.status_code == 503
        wait_until(lambda: live.client.get("/livez").status_code == 503)
        ready = live.client.get("/readyz")
        assert (ready.status_code, ready.json()["reason"]) == (503, "the engine has stopped")
        assert live.client.post("/generate?model=dit&class=0").status_code == 503


def test_a_silent_engine_turns_liveness_red(checkpoints: Path) -> None:
    with running(create_app(tiny_settings(checkpoints, heartbeat_seconds=1e-9))) as live:
        assert live.client.get("/livez").status_code == 503


def test_openapi_tells_the_truth(server: Running) -> None:
    schema = server.client.get("/openapi.json").json()
    operation = schema["paths"]["/generate"]["post"]
    answers = operation["responses"]
    assert set(answers["200"]["content"]) == {
        "image/png", "image/webp", "image/jpeg", "image/apng", "application/x-npy", "application/x-npz",
        "application/json", "text/event-stream",
    }  # fmt: skip
    assert set(answers) == {"200", *(str(error.status) for error in GENERATE_PROBLEMS)}
    linked = schema["paths"]["/generate"]["get"]
    assert set(linked["responses"]) == {"304", *answers}
    for status in ("404", "422", "503"):
        assert list(answers[status]["content"]) == ["application/problem+json"]
    assert "HTTPValidationError" not in str(schema)
    _assert_references_resolve(schema)
    body = schema["components"]["schemas"]["GenerateBody"]["properties"]
    parameters = {parameter["name"]: parameter["schema"] for parameter in linked["parameters"]}
    assert list(body) == list(parameters) == FIELD_NAMES
    for places in (body, parameters):
        assert [places[name]["anyOf"][0]["maximum"] for name in ("steps", "n")] == [200, 16]


def test_answers_match_their_schemas(server: Running) -> None:
    schema = server.client.get("/openapi.json").json()
    answer = server.client.post("/generate?model=dit&class=0&format=json").json()
    problem = server.client.post("/generate?model=dit&class=77").json()
    for value, name in ((answer, "GenerateResponse"), (problem, "Problem")):
        jsonschema.validate(value, schema | {"$ref": f"#/components/schemas/{name}"})


def _assert_references_resolve(schema: dict) -> None:
    names = set(schema["components"]["schemas"])
    stack: list[object] = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                assert node["$ref"].removeprefix("#/components/schemas/") in names
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)


def test_info_tells_what_is_in_force_and_no_secret(checkpoints: Path) -> None:
    key = "alice-has-a-secret-key"
    settings = tiny_settings(checkpoints, api_keys={"alice": {"key": key, "concurrency": 3}})
    with running(create_app(settings)) as live:
        assert live.client.get("/info").status_code == 401
        answer = live.client.get("/info", headers={"X-API-Key": key})
        assert key not in answer.text
        info = answer.json()
        assert info["settings"]["max_steps"] == 200  # given
        assert info["settings"]["drain_seconds"] == 30  # default
        assert info["settings"]["api_keys"]["alice"]["concurrency"] == 3
        assert set(info["settings"]) == set(type(settings).model_fields)
        assert info["versions"]["torch"] == torch.__version__
        for name in ("dit", "unet"):
            profile = info["profiles"][name]
            assert profile["max_rows"] == 6
            assert [int(rows) for rows in profile["step_seconds"]] == [1, 2, 3, 4, 5, 6]
            assert all(seconds > 0 for seconds in profile["step_seconds"].values())
