"""What one service promises, over real sockets with two HTTP workers."""

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from service.settings import ModelEntry
from service.web.worker import FAIR_SHARE, FREE_CONNECTIONS
from tests.service.process import QUERY, SHORT, Processes, two_workers
from tests.service.sockets import connect, head, read_all
from tests.waiting import wait_until

CONNECTIONS = 256
CROWD = FREE_CONNECTIONS / (1 - FAIR_SHARE / 2)  # connections of a worker that is crowded where the other has none
KEY = "alice-has-a-secret-key"


@pytest.fixture(scope="module")
def service(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with two_workers(checkpoints, tmp_path_factory.mktemp("log")) as running:
        yield running


def connections(session: httpx.Client) -> list[int]:
    """Open ones of each worker, with that of the session."""
    text = session.get("/metrics").text
    return [int(float(count)) for count in re.findall(r"^diffusion_worker_connections\{.*\} (\S+)$", text, re.M)]


def wait_until_alone(session: httpx.Client) -> None:
    wait_until(lambda: sum(connections(session)) == 1)


def test_connections_are_balanced(service: Processes) -> None:
    """Also where one worker could take all connections before the other one wakes up."""
    workers = service.workers()
    for late, awake in ((None, None), workers, workers[::-1]):
        with ExitStack() as stack, ThreadPoolExecutor(16) as pool:
            session = stack.enter_context(httpx.Client(base_url=service.url, timeout=60))
            wait_until_alone(session)
            if late:
                late.suspend()
            clients = list(pool.map(lambda _: stack.enter_context(connect(service.url)), range(CONNECTIONS)))
            if late and awake:
                wait_until(lambda awake=awake: len(awake.net_connections("tcp")) > CROWD)
                late.resume()
            for client in clients:
                client.sendall(head("GET", "/livez"))
            assert all(client.recv(12) == b"HTTP/1.1 200" for client in clients)
            held = connections(session)
        assert sum(held) == 1 + CONNECTIONS
        assert max(held) <= 1.5 * sum(held) / 2


def test_a_worker_alone_takes_all_connections(checkpoints: Path, tmp_path: Path) -> None:
    """The other one is frozen, which looks as if it had too few."""
    count = 4 * FREE_CONNECTIONS
    assert count > FAIR_SHARE * count / 2 + FREE_CONNECTIONS, "this worker is not crowded: the test proves nothing"
    with two_workers(checkpoints, tmp_path) as service, ExitStack() as stack:
        frozen = service.workers()[0]
        frozen.suspend()
        stack.callback(frozen.resume)
        for _ in range(count):
            client = stack.enter_context(connect(service.url))
            client.sendall(head("GET", "/livez"))
            assert client.recv(12) == b"HTTP/1.1 200"


def test_probes_are_answered_though_there_are_too_many_connections(checkpoints: Path, tmp_path: Path) -> None:
    with two_workers(checkpoints, tmp_path, max_connections=8, header_seconds=60) as service, ExitStack() as stack:
        watcher, probe = (stack.enter_context(httpx.Client(base_url=service.url, timeout=60)) for _ in range(2))
        for _ in range(7):
            stack.enter_context(connect(service.url))
        wait_until(lambda: sum(connections(watcher)) == 8)
        for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
            answer = probe.get(path)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert probe.post("/generate", params=SHORT).status_code == 503


def test_whole_urls_are_served(checkpoints: Path, tmp_path: Path) -> None:
    with two_workers(checkpoints, tmp_path, api_keys={"alice": {"key": KEY}}) as service:
        for target, headers, status in (
            ("http://x/livez", [], 200),
            ("http://x/models", [], 401),
            ("http://x/models", [f"X-API-Key: {KEY}"], 200),
            ("http://x/generate?class=0&model=dit&seed=1&deterministic=true", [f"X-API-Key: {KEY}"], 200),
            ("http://x/livez?" + 4097 * "y", [], 414),
        ):
            with connect(service.url) as client:
                client.sendall(head("GET", target, "Connection: close", *headers))
                assert read_all(client).startswith(f"HTTP/1.1 {status} ".encode())


def test_a_client_that_stops_sending_gets_its_picture(service: Processes) -> None:
    before = service.metric("diffusion_requests_total", outcome="ok")
    with connect(service.url) as client:
        client.sendall(head("POST", "/generate?model=dit&class=cat&steps=20"))
        client.shutdown(socket.SHUT_WR)
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"IEND\xaeB`\x82")
    assert service.metric("diffusion_requests_total", outcome="ok") == before + 1


@pytest.mark.parametrize("accept", ["image/png", "text/event-stream"])
def test_a_client_that_leaves_ends_its_work_on_each_worker(service: Processes, accept: str) -> None:
    before = service.metric("diffusion_requests_total", outcome="cancelled")
    saved = service.metric("diffusion_cancelled_evaluations_saved_total")
    for session in service.ask_each_worker().values():
        stream = cast(Any, session)._transport._pool.connections[0]._connection._network_stream
        request = head("POST", "/generate?model=dit&class=cat&steps=200&guidance=1", f"Accept: {accept}")
        stream.get_extra_info("socket").sendall(request)
        wait_until(lambda: service.metric("diffusion_running_slots") == 1)
        session.close()
        wait_until(lambda: service.metric("diffusion_running_slots") == 0)
    assert service.metric("diffusion_requests_total", outcome="cancelled") == before + 2
    assert service.metric("diffusion_cancelled_evaluations_saved_total") > saved


def test_deadlines_hold_on_each_worker(service: Processes) -> None:
    for session in service.ask_each_worker().values():
        met = session.post("/generate", params=QUERY | {"steps": 10, "deadline_ms": 60_000})
        hopeless = session.post("/generate", params=QUERY | {"deadline_ms": 10})
        assert (met.status_code, hopeless.status_code) == (200, 503)
        assert hopeless.json()["type"] == "urn:problem:deadline-unreachable"


def test_deterministic_pictures_have_the_same_bytes_from_each_worker(checkpoints: Path, tmp_path: Path) -> None:
    models = {"dit": ModelEntry(checkpoint=checkpoints / "dit")}
    query = {"model": "dit", "class": "cat", "seed": 7, "steps": 4, "deterministic": True}
    with two_workers(checkpoints, tmp_path, models=models) as service, ThreadPoolExecutor(4) as pool:
        sessions = list(service.ask_each_worker().values())
        crowd = [pool.submit(service.ask, steps=20, n=3) for _ in range(4)]  # others in the same steps
        answers = [session.get("/generate", params=query) for session in 2 * sessions]
        assert [answer.status_code for answer in answers] == [200] * 4
        assert len({answer.content for answer in answers}) == 1
        assert len({answer.headers["etag"] for answer in answers}) == 1
        assert sessions[1].get("/generate", params=query | {"seed": 8}).content != answers[0].content
        assert [one.result().status_code for one in crowd] == [200] * 4


def test_slow_clients_are_cut_by_each_worker(checkpoints: Path, tmp_path: Path) -> None:
    limits = {"header_seconds": 2, "body_seconds": 2, "keep_alive_seconds": 2}
    with two_workers(checkpoints, tmp_path, **limits) as service, ExitStack() as stack:
        session = stack.enter_context(httpx.Client(base_url=service.url, timeout=60))
        unfinished = head("POST", "/generate", "Content-Length: 9") + b"abc"
        clients: list[socket.socket] = []
        for part in 4 * (b"", head("GET", "/livez")[:20], unfinished, head("GET", "/livez")):
            clients.append(stack.enter_context(connect(service.url)))
            clients[-1].sendall(part)
        assert service.ask().status_code == 200
        statuses = [read_all(client)[:12] for client in clients]  # until the server closes
        assert statuses == 4 * [b"", b"", b"HTTP/1.1 408", b"HTTP/1.1 200"]
        wait_until(lambda: sum(connections(session)) == 1)


GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00" * 20_000,
    b"GET",
    b"\xff HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    head("POST", "/generate", "Transfer-Encoding: chunked") + b"zz\r\n",
    head("POST", "/generate", "Content-Length: 1") + b"{}",
)


def test_garbage_disturbs_no_other_client(service: Processes) -> None:
    workers = {worker.pid for worker in service.workers()}

    def send(number: int) -> None:
        """Every second one leaves at once."""
        with connect(service.url) as client, suppress(ConnectionError):
            client.sendall(GARBAGE[number % len(GARBAGE)])
            if number % 2:
                client.shutdown(socket.SHUT_WR)
                read_all(client)

    with ThreadPoolExecutor(8) as pool:
        good = pool.submit(service.ask, **QUERY)
        for done in [pool.submit(send, number) for number in range(400)]:
            done.result()
        assert good.result().status_code == 200
    with httpx.Client(base_url=service.url, timeout=60) as session:
        wait_until(lambda: sum(connections(session)) == 1)
    assert {worker.pid for worker in service.workers()} == workers
    assert service.metric("diffusion_protocol_refusals_total", reason="malformed-request") > 0
    assert service.ask().status_code == 200
    assert "Traceback" not in service.log
