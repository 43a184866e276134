"""Previews as server-sent events, over a real socket."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from service.local import create_app
from service.settings import Settings
from service.web import images
from service.web.event_stream import picture_events
from service.web.generation import Shown
from tests.service.conftest import Running, running
from tests.service.networks import simulated
from tests.service.pictures import decoded, opened, pixels
from tests.waiting import wait_until

STREAM = {"Accept": "text/event-stream"}
PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"

Event = tuple[str, dict[str, Any]]


def parse(text: str) -> list[Event]:
    """Events by the letter of the format: blocks between empty lines, comments dropped."""
    events = []
    for block in filter(None, text.split("\n\n")):
        lines = [line.partition(": ") for line in block.split("\n") if not line.startswith(":")]
        fields = {name: value for name, _, value in lines}
        if fields:
            events.append((fields["event"], json.loads(fields["data"])))
    return events


def stream(server: Running, headers: dict[str, str] = STREAM, **query: Any) -> list[Event]:
    fields = {"model": "dit", "class": "cat", "seed": 3, "steps": 6} | query
    response = server.client.post("/generate", params=fields, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return parse(response.text)


def test_a_stream_that_is_left_ends_its_request_before_its_own_end() -> None:
    """Else the access line would be written without its outcome."""
    ended = []
    job: Any = SimpleNamespace(params=SimpleNamespace(seeds=(1,), num_steps=3), size="8x8")

    async def updates() -> AsyncGenerator[Shown[list[str]]]:
        try:
            yield Shown([""], index=0, step=1, forward=1)
        finally:
            ended.append("request")

    async def leave() -> None:
        events = picture_events(updates(), job, "png")
        assert (await anext(events))[0] == PARTIAL
        await events.aclose()
        ended.append("stream")

    asyncio.run(leave())
    assert ended == ["request", "stream"]


def test_previews_come_in_order_and_then_the_image(server: Running) -> None:
    events = stream(server, preview=2)
    assert [name for name, _ in events] == [PARTIAL, PARTIAL, COMPLETED]
    assert [data["type"] for _, data in events] == [PARTIAL, PARTIAL, COMPLETED]
    assert [(data["partial_image_index"], data["step"]) for _, data in events[:2]] == [(0, 2), (1, 4)]
    for _, data in events:
        assert (data["seed"], data["steps"], data["size"], data["output_format"]) == (3, 6, "8x8", "png")
    assert set(events[-1][1]["timings"]) == {"queue", "denoise", "encode"}


def test_the_last_picture_is_that_of_a_plain_request(server: Running) -> None:
    *_, (_, last) = stream(server, preview=5, sampler="ab2", guidance=2)
    query = {"model": "dit", "class": "cat", "seed": 3, "steps": 6, "sampler": "ab2", "guidance": 2}
    assert (decoded(last["b64_json"]) == pixels(server.client.post("/generate", params=query))).all()


def test_every_image_has_its_own_previews_and_seed(server: Running) -> None:
    events = stream(server, n=2, preview=1)
    assert [(name, data["image_index"]) for name, data in events] == [
        (PARTIAL, 0),
        (PARTIAL, 1),
        (COMPLETED, 0),
        (COMPLETED, 1),
    ]
    seeds = [data["seed"] for _, data in events]
    assert seeds[:2] == seeds[2:]
    assert seeds[0] != seeds[1]


def test_events_tell_which_forward_made_them(server: Running) -> None:
    """Both images fit into every step, so they share each."""
    forwards = [data["forward"] for _, data in stream(server, n=2, preview=64)]
    assert [forward - forwards[0] for forward in forwards] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
def test_pictures_come_in_the_format_that_is_asked_for(server: Running, form: str) -> None:
    events = stream(server, format=form)
    assert [data["output_format"] for _, data in events] == [form] * 5
    assert [opened(data["b64_json"]).format for _, data in events] == [form.upper()] * 5


def test_a_stream_has_some_previews_unless_told_otherwise(server: Running) -> None:
    assert [name for name, _ in stream(server)] == [PARTIAL] * 4 + [COMPLETED]
    assert [name for name, _ in stream(server, preview=0)] == [COMPLETED]


def test_only_the_accept_header_asks_for_a_stream(server: Running) -> None:
    """`curl -o x.png` sends Accept: */*, and must not write events into a file with that name."""
    for headers in ({"Accept": "*/*"}, {"Accept": ""}):
        refused = server.client.post("/generate?model=dit&class=cat&steps=2&preview=1", headers=headers)
        assert refused.json()["detail"] == "preview: needs Accept: text/event-stream"
        plain = server.client.post("/generate?model=dit&class=cat&steps=2&preview=0", headers=headers)
        assert plain.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("query", "accept", "field"),
    [
        ({"preview": 65}, "text/event-stream", "preview"),
        ({"preview": -1}, "text/event-stream", "preview"),
        ({"format": "npy"}, "text/event-stream", "format"),
        ({"format": "json", "preview": 2}, "*/*", "preview"),
        ({"preview": 2}, "image/png", "preview"),
        ({"class": "cow"}, "text/event-stream", "class"),
    ],
)
def test_refusals_are_plain_problems(server: Running, query: dict[str, Any], accept: str, field: str) -> None:
    fields = {"model": "dit", "class": "cat"} | query
    response = server.client.post("/generate", params=fields, headers={"Accept": accept})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["errors"][0]["field"] == field


def test_an_unforeseen_error_at_the_start_of_a_stream_has_its_own_status(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "encode_base64", lambda *_, **__: 1 / 0)
    answer = server.client.post("/generate?model=dit&class=cat&steps=2&preview=0", headers=STREAM)
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")


@pytest.fixture(scope="module")
def slow(checkpoints: Path) -> Iterator[Running]:
    """20 ms a step, so that things can happen on the way."""
    models = {"dit": simulated(checkpoints / "dit", 20)}
    settings = Settings(models=models, device="cpu", max_requests=1, max_rows=4)
    with running(create_app(settings)) as live:
        yield live


def test_an_engine_that_refuses_does_so_by_status(slow: Running) -> None:
    url, query = f"{slow.url}/generate", {"model": "dit", "class": "cat", "steps": 100, "guidance": 1, "n": 4}
    cancelled = slow.metric("diffusion_requests_total", outcome="cancelled")
    with ExitStack() as streams:
        for slots in (4, 8):  # as many images as may have begun
            streams.enter_context(httpx.stream("POST", url, params=query, headers=STREAM))
            wait_until(lambda slots=slots: slow.metric("diffusion_running_slots") == slots)
        streams.enter_context(httpx.stream("POST", url, params=query, headers=STREAM))
        wait_until(lambda: slow.metric("diffusion_queue_depth") == 1)
        refused = slow.client.post("/generate", params=query, headers=STREAM)
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["type"] == "urn:problem:queue-full"
    wait_until(lambda: slow.metric("diffusion_requests_total", outcome="cancelled") == cancelled + 3)


def test_an_error_on_the_way_is_the_last_event(slow: Running) -> None:
    """The deadline is in reach by the profile, which says 20 ms a step, and gone on the device as it is now."""
    query = {"model": "dit", "class": "cat", "steps": 40, "guidance": 1, "preview": 64, "deadline_ms": 3000}
    wait_until(lambda: slow.metric("diffusion_running_slots") == 0)
    runner = slow.app.state.local.core.runners["dit"]
    cost, runner.cost = runner.cost, type(runner.cost)(200, 0)  # the device slows down
    try:
        events = parse(slow.client.post("/generate", params=query, headers=STREAM).text)
    finally:
        runner.cost = cost
    assert {name for name, _ in events[:-1]} == {PARTIAL}
    name, problem = events[-1]
    assert (name, problem["status"], problem["type"]) == ("error", 504, "urn:problem:deadline-passed")


def test_a_client_that_leaves_its_stream_frees_the_slot(slow: Running) -> None:
    wait_until(lambda: slow.metric("diffusion_running_slots") == 0)
    before = slow.metric("diffusion_requests_total", outcome="cancelled")
    saved = slow.metric("diffusion_cancelled_evaluations_saved_total")
    query = {"model": "dit", "class": "cat", "steps": 200, "guidance": 1, "preview": 64}
    with httpx.stream("POST", f"{slow.url}/generate", params=query, headers=STREAM) as response:
        assert next(response.iter_lines()) == f"event: {PARTIAL}"
    wait_until(lambda: slow.metric("diffusion_running_slots") == 0)
    wait_until(lambda: slow.metric("diffusion_requests_total", outcome="cancelled") == before + 1)
    wait_until(lambda: slow.metric("diffusion_cancelled_evaluations_saved_total") > saved)


def test_more_previews_than_anybody_could_look_at_are_refused(server: Running) -> None:
    query = {"model": "dit", "class": "cat", "n": 8, "steps": 2}
    assert server.client.post("/generate", params=query | {"preview": 32}, headers=STREAM).status_code == 200
    refused = server.client.post("/generate", params=query | {"preview": 33}, headers=STREAM)
    assert refused.status_code == 422
    assert refused.json()["detail"] == "preview: 33 of each of 8 images are more than 256 in all"
