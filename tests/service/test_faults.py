"""Encoders that fail, clients that reset, a shutdown in a crowd."""

import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.local import create_app
from service.web import images
from tests.service.conftest import Running, running, tiny_settings
from tests.service.networks import simulated
from tests.service.process import serving, status
from tests.service.sockets import connect, head, reset
from tests.waiting import wait_until

QUERY = {"model": "dit", "class": "cat", "guidance": 1, "steps": 40}


def test_an_encoder_that_fails_fails_its_request_only(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    real = images.encode

    def fragile(pictures: list[np.ndarray], form: str, *others: Any, **more: Any) -> bytes:
        if form == "webp":
            raise OSError("a secret path: the disk is full")
        return real(pictures, form, *others, **more)

    monkeypatch.setattr(images, "encode", fragile)
    errors = server.metric("diffusion_requests_total", outcome="error")
    with ThreadPoolExecutor(4) as pool:
        forms = ["png", "webp", "png", "webp"]
        answers = list(
            pool.map(lambda form: server.client.post("/generate", params=QUERY | {"format": form}), forms)
        )
    assert [answer.status_code for answer in answers] == [200, 500, 200, 500]
    for failed in answers[1::2]:
        assert failed.json()["type"] == "urn:problem:internal-error"
        assert failed.headers["X-Request-Id"]
        assert "secret" not in failed.text
    assert server.metric("diffusion_requests_total", outcome="error") == errors + 2
    kinds = iter(["png"])  # the first preview can be encoded, so the stream has begun when the second one fails

    def fragile_later(pictures: list[np.ndarray], form: str, *others: Any, **more: Any) -> bytes:
        return fragile(pictures, next(kinds, form), *others, **more)

    monkeypatch.setattr(images, "encode", fragile_later)
    stream = server.client.post(
        "/generate", params=QUERY | {"format": "webp", "preview": 2}, headers={"Accept": "text/event-stream"}
    )
    assert stream.status_code == 200
    assert stream.text.rstrip().rpartition("event: ")[2].startswith("error")
    monkeypatch.setattr(images, "encode", fragile)
    assert server.client.post("/generate", params=QUERY).status_code == 200
    wait_until(lambda: server.metric("diffusion_running_slots") == 0)


def test_a_client_that_resets_its_stream_disturbs_no_other(checkpoints: Path) -> None:
    settings = tiny_settings(checkpoints, models={"dit": simulated(checkpoints / "dit", 10)}, max_rows=8)
    with running(create_app(settings)) as live, ThreadPoolExecutor(1) as pool:
        other = pool.submit(httpx.post, f"{live.url}/generate", params=QUERY | {"steps": 100}, timeout=60)
        query = "/generate?model=dit&class=0&steps=200&preview=64"
        for _ in range(3):
            client = connect(live.url)
            client.sendall(head("POST", query, "Accept: text/event-stream", "Content-Length: 0"))
            received = b""
            while b"partial_image" not in received:
                received += client.recv(4096)
            reset(client)
        wait_until(lambda: live.metric("diffusion_requests_total", outcome="cancelled") == 3)
        assert other.result().status_code == 200
        wait_until(lambda: live.metric("diffusion_running_slots") == 0)
        assert live.metric("diffusion_backlog_seconds") == 0
        assert live.client.post("/generate", params=QUERY).status_code == 200


def test_a_shutdown_under_load_loses_nothing_that_was_accepted(checkpoints: Path, tmp_path: Path) -> None:
    """Clients ask all the time: each gets a picture, a refusal, or no connection."""
    models = {"dit": simulated(checkpoints / "dit", 10)}
    seen: Counter[str] = Counter()
    ready: list[int] = []
    stop = threading.Event()

    def ask(url: str) -> None:
        while not stop.is_set():
            try:
                answer = httpx.post(f"{url}/generate", params=QUERY, timeout=60)
                seen[str(answer.status_code)] += 1
            except httpx.TransportError:  # the port is closed, or its request was not read at all
                seen["none"] += 1
                time.sleep(0.05)

    with (tmp_path / "log").open("w+") as log, ThreadPoolExecutor(8) as pool:
        with serving(checkpoints, log, models=models) as (process, url):
            clients = [pool.submit(ask, url) for _ in range(6)]
            wait_until(lambda: seen["200"] > 6)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: status(f"{url}/readyz") != 200)
            while process.poll() is None:
                ready.append(status(f"{url}/readyz"))
            stop.set()
            assert process.wait() == 0
            for client in clients:
                client.result()
        log.seek(0)
        answered = Counter(line.split(" in ")[0].rpartition(" ")[2] for line in log if "POST /generate" in line)
    assert 200 not in ready
    assert set(seen) <= {"200", "503", "none"}
    assert {status: seen[status] for status in answered} == dict(answered)  # each request in the log was answered
    assert set(answered) <= {"200", "503"}
