"""deadline_ms over a real socket, with a model that is slow and one that is simulated."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from msgspec import structs

from service.engine.simulated import StepCost
from service.local import create_app
from service.settings import Settings
from tests.service.conftest import Running, running
from tests.service.networks import simulated
from tests.waiting import wait_until

STEPS = 20  # of 10 ms each on the simulated device


@pytest.fixture(scope="module")
def live(checkpoints: Path) -> Iterator[Running]:
    """Ten milliseconds a step, two rows at most. On a busy machine, its start measures more."""
    models = {"dit": simulated(checkpoints / "dit", 10)}
    with running(create_app(Settings(models=models, device="cpu", max_rows=2))) as server:
        profile, cards = {1: 0.01, 2: 0.01}, server.app.state.handler.engine.cards
        server.app.state.local.core.runners["dit"].step_seconds = profile
        cards["dit"] = structs.replace(cards["dit"], step_seconds=profile)
        yield server


def ask(live: Running, **fields: int | str) -> httpx.Response:
    query = {"model": "dit", "class": 1, "steps": STEPS, "guidance": 1, **fields}
    return httpx.post(f"{live.url}/generate", params=query, timeout=60)


def error_of_v1(live: Running, milliseconds: int) -> dict[str, str]:
    body = {"model": "dit", "prompt": "1", "num_inference_steps": STEPS, "deadline_ms": milliseconds}
    return live.client.post("/v1/images/generations", json=body).json()["error"]


def test_a_deadline_with_room_is_met(live: Running) -> None:
    assert ask(live, deadline_ms=30_000).status_code == 200


@pytest.mark.parametrize(("milliseconds", "needed"), [(150, "about "), (20, "at least ")], ids=["engine", "worker"])
def test_a_deadline_that_cannot_be_met_is_refused_at_once(live: Running, milliseconds: int, needed: str) -> None:
    before = live.metric("diffusion_rejections_total", model="dit", reason="deadline")
    answer = ask(live, deadline_ms=milliseconds)  # the steps alone take 200 ms
    assert answer.status_code == 503
    problem = answer.json()
    assert problem["type"] == "urn:problem:deadline-unreachable"
    assert problem["detail"].startswith(f"deadline_ms: the deadline cannot be met: {needed}")
    assert [f"{error['field']}: {error['message']}" for error in problem["errors"]] == [problem["detail"]]
    assert error_of_v1(live, milliseconds)["param"] == "deadline_ms"
    assert "retry-after" not in answer.headers  # no idle device could meet it: it would be refused at any time
    assert "retry_after_ms" not in problem
    assert live.metric("diffusion_rejections_total", model="dit", reason="deadline") == before + 2


def test_a_deadline_that_passes_between_two_steps_gives_504_and_stops_the_work(live: Running) -> None:
    """The device turns out to be twenty times as slow as its profile said."""
    runner = live.app.state.local.core.runners["dit"]
    profiled, runner.cost = runner.cost, StepCost(200, 0)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(ask, live, deadline_ms=2000)  # 200 ms by the profile
        wait_until(lambda: late.done() or live.metric("diffusion_running_slots", model="dit") == 1)
        assert ask(live).status_code == 200
        answer = late.result()
        assert answer.status_code == 504, answer.text
        problem = answer.json()
        assert problem["type"] == "urn:problem:deadline-passed"
        assert problem["errors"][0]["field"] == "deadline_ms"
        assert answer.headers["content-type"] == "application/problem+json"
    runner.cost = profiled
    assert live.metric("diffusion_requests_total", model="dit", outcome="expired") >= 1
    wait_until(lambda: live.metric("diffusion_running_slots", model="dit") == 0)
    assert live.metric("diffusion_queue_depth", model="dit") == 0


@pytest.mark.parametrize("value", [0, -5, 3_600_001, "soon", 1.5])
def test_an_invalid_deadline_names_its_field(live: Running, value: int | str) -> None:
    answer = ask(live, deadline_ms=value)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "deadline_ms"
