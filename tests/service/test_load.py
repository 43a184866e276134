"""Clients that leave, queues that fill, models that fail: over a real socket."""

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from torch import nn

from models.dit_model import DIT
from service.local import create_app
from service.settings import ModelEntry, Settings
from tests.service.conftest import Running, running
from tests.service.networks import Fragile, Slow, Stepwise, entry
from tests.service.pictures import difference, pixels
from tests.service.sockets import connect, head
from tests.waiting import PATIENCE, wait_until

LONG = {"model": "dit", "class": "cat", "steps": 200, "guidance": 2}
SHORT = {"model": "dit", "class": "dog", "steps": 3}


def settings(architecture: type[nn.Module], **changes: Any) -> Settings:
    return Settings(models={"dit": entry(architecture)}, device="cpu", dtype="float32", max_rows=4, **changes)


def send(live: Running, query: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{live.url}/generate", params=query, timeout=60)


def leave_after_sending(live: Running, query: dict[str, Any]) -> socket.socket:
    connection, body = connect(live.url), json.dumps(query).encode()
    headers = ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    connection.sendall(head("POST", "/generate", *headers) + body)
    return connection


def test_a_client_that_leaves_frees_its_slots_and_its_place_in_the_queue() -> None:
    with running(create_app(settings(Slow))) as live:
        gone = [leave_after_sending(live, LONG | {"n": 2}) for _ in range(5)]  # four of them take turns
        wait_until(lambda: live.metric("diffusion_running_slots", model="dit") == 8)
        wait_until(lambda: live.metric("diffusion_queue_depth", model="dit") == 1)
        for connection in gone:
            connection.close()
        wait_until(lambda: live.metric("diffusion_running_slots", model="dit") == 0)
        wait_until(lambda: live.metric("diffusion_requests_total", outcome="cancelled") == 5)
        assert live.metric("diffusion_queue_depth", model="dit") == 0
        assert live.metric("diffusion_backlog_seconds", model="dit") == 0
        saved = live.metric("diffusion_cancelled_evaluations_saved_total", model="dit")
        done = live.metric("diffusion_evaluations_total", model="dit")
        assert saved + done == 5 * 2 * 200 * 2  # requests x images x steps x rows
        assert saved > 800  # the queued request had cost nothing yet
        assert send(live, SHORT).status_code == 200


def step_until(condition: Callable[[], bool]) -> None:
    """Steps pass only while they are needed, however slow the machine; gauges are 0.1 s old at most."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        Stepwise.permits.release()
        time.sleep(0.05)


def open_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all further steps pass."""
    monkeypatch.setattr(Stepwise, "closed", False)
    Stepwise.permits.release()


def test_a_short_request_overtakes_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(create_app(settings(Stepwise))) as live, ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(Stepwise, "closed", True)
        long = pool.submit(send, live, LONG)
        step_until(lambda: live.metric("diffusion_running_slots", model="dit") == 1)
        short = pool.submit(send, live, SHORT)
        step_until(short.done)
        assert not long.done()
        open_all(monkeypatch)
        assert (short.result().status_code, long.result().status_code) == (200, 200)


def test_a_full_queue_refuses_with_a_computed_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(create_app(settings(Stepwise, max_requests=1))) as live, ThreadPoolExecutor(6) as pool:
        monkeypatch.setattr(Stepwise, "closed", True)
        answers = []
        # each has less slack than those before it, so it begins at once, until all slots are taken: 8 for 4 rows
        for slots, deadline in ((2, 600), (4, 500), (6, 400), (8, 300)):
            answers.append(pool.submit(send, live, LONG | {"n": 2, "deadline_ms": deadline * 1000}))
            step_until(lambda slots=slots: live.metric("diffusion_running_slots", model="dit") == slots)
        answers.append(pool.submit(send, live, LONG))
        step_until(lambda: live.metric("diffusion_queue_depth", model="dit") == 1)
        refusal = pool.submit(send, live, SHORT)
        step_until(refusal.done)
        open_all(monkeypatch)
        refused = refusal.result()
        assert refused.status_code == 503
        assert refused.json()["type"] == "urn:problem:queue-full"
        assert 1 <= int(refused.headers["Retry-After"]) < 3600
        assert refused.json()["retry_after_seconds"] == int(refused.headers["Retry-After"])
        assert live.metric("diffusion_rejections_total", reason="queue_full") == 1
        assert [answer.result().status_code for answer in answers] == [200] * 5
        assert send(live, SHORT).status_code == 200


@pytest.mark.parametrize(("name", "reason"), [("dog", "RuntimeError"), ("0", "non-finite")])
def test_a_failing_row_fails_only_its_request(name: str, reason: str) -> None:
    """And its client reads the kind of error, not the text, which may hold anything."""
    with running(create_app(settings(Fragile))) as live, ThreadPoolExecutor(4) as pool:
        healthy = [pool.submit(send, live, LONG | {"steps": 40, "seed": 3}) for _ in range(2)]
        failed = send(live, SHORT | {"class": name})
        assert failed.status_code == 500
        assert reason in failed.json()["detail"]
        assert "breaks this model" not in failed.text
        assert [future.result().status_code for future in healthy] == [200, 200]
        again = send(live, LONG | {"steps": 40, "seed": 3})
        assert difference(pixels(healthy[0].result()), pixels(again)) <= 1  # the retry did not advance a slot twice
        assert live.metric("diffusion_requests_total", outcome="error") == 1
        assert live.client.get("/livez").status_code == 200


def test_shutdown_finishes_what_was_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(4) as pool:
        with running(create_app(settings(Stepwise))) as live:
            monkeypatch.setattr(Stepwise, "closed", True)
            answers = [pool.submit(send, live, LONG) for _ in range(4)]
            step_until(lambda: live.metric("diffusion_running_slots") + live.metric("diffusion_queue_depth") == 4)
            open_all(monkeypatch)
        assert [answer.result().status_code for answer in answers] == [200] * 4


class Narrow(DIT):
    """A device with memory for two rows, once it is warm."""

    limit = 10**9

    def forward(self, x: Any, t: Any, y: Any, r: Any = None, w: Any = None) -> torch.Tensor:
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x, t, y, r, w)


def test_a_lack_of_memory_lowers_the_cap_and_fails_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(create_app(settings(Narrow))) as live, ThreadPoolExecutor(4) as pool:
        assert live.card()["max_rows"] == 4
        monkeypatch.setattr(Narrow, "limit", 2)
        answers = list(pool.map(lambda seed: send(live, SHORT | {"seed": seed, "n": 2}), range(4)))
        assert [answer.status_code for answer in answers] == [200] * 4
        assert live.card()["max_rows"] == 2
        assert live.client.get("/livez").status_code == 200


class Plain(nn.Module):
    """Somebody else's network: no cast of its own, another shape, no num_classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_a_foreign_network_of_another_shape_is_served_in_bfloat16() -> None:
    path = f"{Plain.__module__}:{Plain.__name__}"
    foreign = ModelEntry(architecture=path, config={"shape": [1, 12, 20], "class_names": ["a", "b"]})
    wide = Settings(models={"plain": foreign}, device="cpu", dtype="bfloat16", max_rows=2)
    with running(create_app(wide)) as live:
        assert pixels(send(live, {"model": "plain", "class": "b"})).shape == (12, 20)
