"""Two workers that are told to end, over real sockets: what open requests, streams and metrics see of it."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.client import reserved_port
from service.supervisor import ENGINE_DIED
from tests.service.networks import simulated
from tests.service.process import QUERY, Processes, status, two_workers
from tests.service.test_streams import COMPLETED, STREAM, parse
from tests.waiting import wait_until

ENDLESS = QUERY | {"steps": 1000}
ENDLESS_MS = 100  # of a step: nothing in a test takes as long as the request


def ask(session: httpx.Client) -> httpx.Response:
    return session.post("/generate", params=ENDLESS)


@contextmanager
def asked(
    checkpoints: Path,
    folder: Path,
    t0_ms: float = ENDLESS_MS,
    send: Callable[[httpx.Client], httpx.Response] = ask,
    **settings: Any,
) -> Iterator[tuple[Processes, list[Future[httpx.Response]]]]:
    """Two workers with an open request each."""
    settings |= {"models": {"dit": simulated(checkpoints / "dit", t0_ms)}, "max_steps": 1000}
    with two_workers(checkpoints, folder, **settings) as service, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(send, session) for session in service.ask_each_worker().values()]
        wait_until(lambda: service.metric("diffusion_running_slots") == 2)
        try:
            yield service, answers
        finally:
            service.supervisor.kill()  # or the pool would wait for the answers


def drain(service: Processes) -> None:
    service.supervisor.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping: accepted requests may take" in service.log)


def test_the_second_signal_refuses_what_is_open(checkpoints: Path, tmp_path: Path) -> None:
    with asked(checkpoints, tmp_path, drain_seconds=3600) as (service, answers):
        drain(service)
        service.supervisor.send_signal(signal.SIGTERM)
        for answer in answers:
            assert answer.result().status_code == 503
            assert answer.result().headers["content-type"] == "application/problem+json"
            assert "shutting down" in answer.result().json()["detail"]
        assert service.supervisor.wait(timeout=60) == 0
        assert "Traceback" not in service.log


def test_the_third_signal_ends_even_what_does_not_answer(checkpoints: Path, tmp_path: Path) -> None:
    with asked(checkpoints, tmp_path, drain_seconds=3600) as (service, answers):
        children = service.children()
        drain(service)
        for child in children:
            child.suspend()
        service.supervisor.send_signal(signal.SIGTERM)
        service.supervisor.send_signal(signal.SIGINT)  # the same one twice at once could be heard as one
        assert service.supervisor.wait(timeout=60) == 0
        assert psutil.wait_procs(children, timeout=60)[1] == []
        assert all(isinstance(answer.exception(), httpx.TransportError) for answer in answers)


def test_open_requests_hear_of_an_engine_that_dies_in_a_drain(checkpoints: Path, tmp_path: Path) -> None:
    with asked(checkpoints, tmp_path, drain_seconds=3600) as (service, answers):
        drain(service)
        service.engine().kill()
        for answer in answers:
            assert answer.result().status_code == 503
            assert "the engine has stopped" in answer.result().json()["detail"]
        assert service.supervisor.wait(timeout=60) == ENGINE_DIED


@pytest.mark.parametrize(
    ("drain_seconds", "t0_ms", "last"), [(3600, 5, COMPLETED), (0.2, ENDLESS_MS, "error")], ids=["ends", "is cut"]
)
def test_a_stream_goes_on_in_a_drain(
    checkpoints: Path, tmp_path: Path, drain_seconds: float, t0_ms: float, last: str
) -> None:
    begun = set[int]()  # threads

    def read(session: httpx.Client) -> httpx.Response:
        with session.stream("POST", "/generate", params=ENDLESS | {"preview": 10}, headers=STREAM) as answer:
            text = ""
            for part in answer.iter_text():
                text += part
                begun.add(threading.get_ident())
            return httpx.Response(answer.status_code, text=text)

    with asked(checkpoints, tmp_path, t0_ms, read, drain_seconds=drain_seconds) as (service, answers):
        wait_until(lambda: len(begun) == 2)
        drain(service)
        for answer in answers:
            assert answer.result().status_code == 200
            assert parse(answer.result().text)[-1][0] == last
        assert service.supervisor.wait(timeout=60) == 0
        assert "Traceback" not in service.log


def test_the_metrics_port_lives_through_the_drain(checkpoints: Path, tmp_path: Path) -> None:
    with (
        reserved_port() as port,
        asked(checkpoints, tmp_path, metrics_port=port, drain_seconds=3600) as (service, answers),
    ):
        drain(service)
        wait_until(lambda: status(f"{service.url}/livez") == 0)
        assert service.metric("diffusion_running_slots") == 2
        service.supervisor.send_signal(signal.SIGTERM)
        assert [answer.result().status_code for answer in answers] == [503, 503]
        assert service.supervisor.wait(timeout=60) == 0
