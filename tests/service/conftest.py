"""A real server on a real socket, with two tiny models."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from benchmarks import client
from service.local import create_app
from service.settings import Settings
from tests.waiting import wait_until


@dataclass
class Running:
    app: FastAPI
    url: str
    client: httpx.Client

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of /metrics with that name and those labels; raises where there is none."""
        return client.metric(self.client.get("/metrics").text, name, **labels)

    def card(self, model: str = "dit") -> dict[str, Any]:
        """What /models says about a model."""
        return next(card for card in self.client.get("/models").json()["models"] if card["name"] == model)


@contextmanager
def running(app: FastAPI) -> Iterator[Running]:
    """Serve the application by uvicorn in a thread until the block ends."""
    # with its protocol named, or asyncio leaves Nagle's algorithm on, and every answer waits 40 ms for an ACK
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=60) as session:
            wait_until(lambda: server.started and session.get("/readyz").status_code == 200)
            yield Running(app, url, session)
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


def tiny_settings(checkpoints: Path, **changes: Any) -> Settings:
    values = {"checkpoints": checkpoints, "device": "cpu", "dtype": "float32", "max_rows": 6, "max_steps": 200}
    given: dict[str, Any] = values | {"backend": "torch"} | changes
    return Settings(**given)


@pytest.fixture(scope="module")
def server(checkpoints: Path) -> Iterator[Running]:
    with running(create_app(tiny_settings(checkpoints))) as live:
        yield live


@pytest.fixture(scope="module")
def openai_client(server: Running) -> Iterator[Any]:
    openai = pytest.importorskip("openai", reason="needs openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as live:
        yield live
