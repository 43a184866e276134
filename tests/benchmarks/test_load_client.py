"""The client of the load tests, against servers of a few lines, and the page of `make load`."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest

from benchmarks import client as server_client
from benchmarks.client import serving, started
from benchmarks.serving import load, page
from benchmarks.serving.client import Client, Reply
from benchmarks.serving.load import BROKEN, LATE, LEFT, OK, REFUSED, Answer, offer, outcome_of, repeat
from benchmarks.serving.workloads import Arrival, Closed, Kind

T = TypeVar("T")
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
KIND = Kind("dit", 1)
KEY = "a-key-of-the-load-test"
FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"


class Peer:
    """Answers each request on a connection with the next of some answers; None: never."""

    def __init__(self, *answers: bytes | None):
        self.answers, self.connections, self.requests, self.closed = list(answers), 0, list[bytes](), 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                answer = self.answers.pop(0)
                if answer is not None:
                    for byte in range(0, len(answer), 7):  # in small pieces
                        writer.write(answer[byte : byte + 7])
                        await writer.drain()
                if answer == b"":
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed += 1
        writer.close()


def with_client(peer: Handler, use: Callable[[Client], Awaitable[T]]) -> T:
    """Returns when all connections have ended, too."""
    handlers: set[asyncio.Task[None] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        await peer(reader, writer)

    async def run() -> T:
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            client = Client("127.0.0.1", server.sockets[0].getsockname()[1])
            try:
                return await use(client)
            finally:
                client.close()
                await asyncio.wait([handler for handler in handlers if handler], timeout=60)

    return asyncio.run(run())


GET = b"GET / HTTP/1.1\r\n\r\n"


def test_connections_are_kept() -> None:
    peer = Peer(FINE, b"HTTP/1.1 503 No\r\nretry-after: 7\r\nCONTENT-LENGTH: 0\r\n\r\n", FINE)

    async def use(client: Client) -> list[Reply]:
        return [await client.ask(GET) for _ in range(3)]

    assert with_client(peer, use) == [Reply(200, 3), Reply(503, 0, 7), Reply(200, 3)]
    assert peer.connections == 1


def test_a_connection_that_is_to_close_is_not_used_again() -> None:
    peer = Peer(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", FINE)

    async def use(client: Client) -> None:
        await client.ask(GET)
        await client.ask(GET)

    with_client(peer, use)
    assert peer.connections == 2


def test_every_request_has_one_outcome() -> None:
    refusal = b"HTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n"
    peer, leaving = Peer(FINE, refusal, b"", None, None), Arrival(0.0, KIND, leaves=0.05)
    requests = [(Arrival(0.0, KIND), 60.0)] * 3 + [(Arrival(0.0, KIND), 0.05), (leaving, 60.0)]

    async def use(client: Client) -> list[str]:
        answers = [await offer(client, [arrival], lambda kind: GET, timeout) for arrival, timeout in requests]
        return [answer.outcome for (answer,) in answers]

    assert with_client(peer, use) == [OK, REFUSED, BROKEN, LATE, LEFT]


def test_each_request_is_sent_when_it_is_due() -> None:
    peer, arrivals = Peer(FINE, FINE), [Arrival(0.0, KIND), Arrival(0.05, KIND)]

    async def use(client: Client) -> list[Answer]:
        return await offer(client, arrivals, lambda kind: GET)

    answers = with_client(peer, use)
    assert {answer.due for answer in answers} == {0.0, 0.05}
    assert all(answer.latency > 0 for answer in answers)  # none was sent before it was due


def test_a_client_that_is_not_answered_hangs_up() -> None:
    peer, hung_up = Peer(None), asyncio.Event()

    async def watched(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer(reader, writer)
        hung_up.set()

    async def use(client: Client) -> None:
        await offer(client, [Arrival(0.0, KIND, leaves=0.05)], lambda kind: GET)
        async with asyncio.timeout(60):
            await hung_up.wait()

    with_client(watched, use)
    assert peer.closed == 1


def test_a_closed_loop_asks_again_until_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the load asks for the time, a hundredth of a second has passed."""
    peer, reads = Peer(*[FINE] * 100), count()
    monkeypatch.setattr(load, "time", SimpleNamespace(monotonic=lambda: next(reads) / 100))

    async def use(client: Client) -> list[float]:
        return [answer.due for answer in await repeat(client, Closed("x", 2, KIND, 0.2), lambda kind: GET)]

    due = with_client(peer, use)
    assert peer.connections == 2
    assert 2 < len(due) < 20
    assert 0.1 < max(due) < 0.2


def test_statuses_are_outcomes() -> None:
    assert [outcome_of(Reply(status, 0)) for status in (200, 429, 503, 404)] == [OK, REFUSED, REFUSED, BROKEN]


def test_the_page_of_a_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against a server with a key, whose two models take no time to speak of."""
    out = tmp_path / "folder" / "load.html"
    monkeypatch.setenv("STEPWISE_KEY", KEY)

    async def run() -> int:
        arguments = {"image_size": 8, "image_channels": 1, "hidden_dim": 32, "depth": 1, "num_heads": 4}
        entry = {"config": {"arguments": arguments}, "simulate": {"t0_ms": 0.01, "t1_ms": 0}}
        models, keys = json.dumps({"other": entry, "dit": entry}), json.dumps({"load": {"key": KEY}})
        async with serving(models=models, device="cpu", max_rows=8, api_keys=keys, log_level="error") as server:
            url = f"http://127.0.0.1:{server.port}"
            monkeypatch.setattr(sys, "argv", ["page", url, "--rate", "40", "--seconds", "1", "--out", str(out)])
            return await asyncio.to_thread(page.main)

    assert asyncio.run(run()) == 0
    html = out.read_text()
    assert capsys.readouterr().out == f"{out}\n"
    assert "<svg" in html
    assert "40.0 a second" in html
    assert "<td>ok<td>" in html
    assert all(f"<td>dit, {steps}, {guidance}<td>" in html for steps in (10, 20, 50, 100) for guidance in (1, 3))
    assert not any(mark in html for mark in ("src=", "<link", "@import"))  # it needs no other file


def test_a_server_that_never_answers_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_client, "START_SECONDS", 0.5)
    listens = (
        "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[-1]))); time.sleep(600)"
    )

    async def run() -> None:
        async with started([sys.executable, "-c", listens], {}):
            pass

    with pytest.raises(RuntimeError, match="did not become ready"):
        asyncio.run(run())


def test_a_server_that_is_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["page", "http://127.0.0.1:9"])
    assert page.main() == 1
    assert capsys.readouterr().err.startswith("http://127.0.0.1:9: ")
    monkeypatch.setattr(sys, "argv", ["page", "nonsense"])
    with pytest.raises(SystemExit):
        page.main()
    assert "'nonsense' is no URL" in capsys.readouterr().err
    for option in ("--rate", "--seconds"):
        monkeypatch.setattr(sys, "argv", ["page", "http://127.0.0.1:9", option, "0"])
        with pytest.raises(SystemExit):
            page.main()
        assert "--seconds and --rate must be greater than 0" in capsys.readouterr().err
