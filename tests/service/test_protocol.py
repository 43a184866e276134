"""Bad clients, on raw sockets: too slow, too large, too many, or deaf."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.observe.scoreboard import PROTOCOL_REFUSALS
from service.paths import HEALTH
from service.settings import Settings
from service.web import protocol
from service.web.http1 import MAX_AHEAD, MAX_HEAD
from service.web.middleware import MAX_BODY, ErrorMiddleware, LimitMiddleware
from service.web.protocol import FIRST_BYTES, MAX_DISCARD, MAX_EXTRA
from service.web.worker import configure
from tests.service.sockets import head, read_all
from tests.waiting import wait_until

SHORT = 0.4  # seconds, of the limit that a test is about
LONG = 60.0  # seconds, of all others
REQUEST = head("GET", "/small")
CHUNKED = head("POST", "/small", "Transfer-Encoding: chunked")
CHUNK = b"x" * 65_536


class Application:
    """Answers /small at once, and /large with a megabyte in pieces; knows what has ended.

    /slow waits to be released before it answers, /stream when it has begun to; both end when their client leaves.
    Of /body it keeps the request's.
    """

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.left: list[str] = []
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []
        self.release = threading.Event()
        self.sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        try:
            if scope["path"] == "/stream":
                await send({"type": "http.response.start", "status": 200})
                await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            if scope["path"] in ("/slow", "/stream") and await self.is_left(receive):
                self.left.append(scope["path"])
            elif scope["path"] == "/stream":
                await send({"type": "http.response.body", "body": b"ended"})
            else:
                if scope["path"] == "/body":
                    self.bodies.append((await receive())["body"])
                await self.respond(scope["path"], send)
        finally:
            self.ended.append(scope["path"])

    async def is_left(self, receive: Receive) -> bool:
        """Wait for the end of the client or of the test, whatever comes first."""
        while (await receive()).get("more_body"):
            continue
        leaving = asyncio.ensure_future(receive())
        while not leaving.done() and not self.release.is_set():
            await asyncio.sleep(0.001)
        return leaving.done() or not leaving.cancel()

    async def respond(self, path: str, send: Send) -> None:
        pieces = 64 if path == "/large" else 0
        body = CHUNK * 64 if path == "/whole" else b"small"
        length = len(CHUNK) * pieces + len(body)
        head = [(b"content-length", str(length).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for _ in range(pieces):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
            self.sent += 1
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": body})


class Guarded:
    """A server under limits, and how to speak with it."""

    def __init__(self, server: uvicorn.Server, app: Application, address: tuple[str, int], refused: list[str]):
        self.server, self.app, self.address = server, app, address
        self.refused = refused  # codes of errors

    def connect(self) -> socket.socket:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(60)
        client.connect(self.address)
        return client

    def connections(self) -> int:
        return len(self.server.server_state.connections)


@contextmanager
def guarded(body_limit: bool = False, **limits: Any) -> Iterator[Guarded]:
    values = {"header_seconds": LONG, "body_seconds": LONG, "stream_seconds": LONG, "keep_alive_seconds": 60}
    settings = Settings(**(values | limits), log_level="warning")
    app = Application()
    surrounded = ErrorMiddleware(LimitMiddleware(app, settings.body_seconds)) if body_limit else app
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # small: a deaf client shows at once
        listener.bind(("127.0.0.1", 0))
        refused: list[str] = []
        config = configure(surrounded, settings, refuse=refused.append)
        config.lifespan, config.timeout_graceful_shutdown = "off", 1
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        yield Guarded(server, app, listener.getsockname(), refused)
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


def read_answer(client: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"small"):
        piece = client.recv(4096)
        assert piece, received
        received += piece
    return received


def drip(client: socket.socket, data: bytes, until: Callable[[], bool]) -> None:
    """One byte every 20 ms, so that no limit on silence alone would do."""
    for byte in data:
        if until():
            return
        try:
            client.send(bytes([byte]))
        except OSError:
            return
        time.sleep(0.02)
    raise AssertionError("the server took all of it")


def problem(answer: bytes) -> dict[str, Any]:
    said, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in said
    assert b"connection: close" in said.lower()
    return json.loads(body)


@pytest.mark.parametrize("earlier", [0, 2], ids=["new connection", "kept alive"])
def test_a_head_that_drips_in_is_cut(earlier: int) -> None:
    with guarded(header_seconds=SHORT) as live, live.connect() as client:
        for _ in range(earlier):
            client.sendall(REQUEST)
            read_answer(client)
        drip(client, b"GET /" + b"x" * 10_000, until=lambda: live.connections() == 0)
        assert live.connections() == 0
        assert len(live.app.ended) == earlier


def test_a_connection_that_says_nothing_is_cut() -> None:
    with guarded(header_seconds=SHORT) as live, live.connect() as client:
        assert read_all(client) == b""


def test_a_connection_that_is_idle_after_its_answer_is_not_cut() -> None:
    """The limit on a head passes while it waits for its next request: a later connection is cut by it."""
    with guarded(header_seconds=1.0) as live, live.connect() as client:
        for _ in range(2):
            client.sendall(REQUEST[:10])
            client.sendall(REQUEST[10:])
            assert read_answer(client).startswith(b"HTTP/1.1 200")
            with live.connect() as silent:
                assert read_all(silent) == b""
        wait_until(lambda: live.connections() == 1)
        client.sendall(REQUEST)
        assert read_answer(client).startswith(b"HTTP/1.1 200")


def test_an_idle_connection_is_closed() -> None:
    with guarded(keep_alive_seconds=1) as live, live.connect() as client:
        client.sendall(REQUEST)
        read_answer(client)
        assert read_all(client) == b""
        wait_until(lambda: live.connections() == 0)


def test_a_head_that_is_too_large() -> None:
    with guarded() as live, live.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * (MAX_HEAD + 1))
        said = problem(read_all(client))
        assert (said["status"], said["type"]) == (431, "urn:problem:headers-too-large")
        assert live.app.ended == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01 a TLS greeting\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        head("GET", "/", "Host: b"),
        head("POST", "/", "Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head("POST", "/", "Content-Length: 3", "Content-Length: 5") + b"abc",
        head("POST", "/", "Content-Length: -1"),
        head("GET", "/", "Bad Name: x"),
        head("POST", "/", "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
        head("POST", "/", "Transfer-Encoding: x", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head("CONNECT", "/small"),
    ],
    ids=[
        "no HTTP", "no host", "two hosts", "length and chunks", "two lengths", "negative length", "bad header",
        "gzip", "two codings", "tunnel",
    ],
)  # fmt: skip
def test_what_is_no_http_is_told_so(request_bytes: bytes) -> None:
    with guarded() as live, live.connect() as client:
        client.sendall(request_bytes)
        said = problem(read_all(client))
        assert (said["status"], said["type"]) == (400, "urn:problem:malformed-request")
        assert live.app.ended == []


def test_a_body_that_breaks_while_it_is_read_ends_its_request() -> None:
    with guarded(body_limit=True) as live, live.connect() as client:
        client.sendall(CHUNKED + b"3\r\nabc\r\n")
        client.sendall(b"no length\r\n")
        assert problem(read_all(client))["status"] == 400
        wait_until(lambda: live.connections() == 0)
        assert live.app.ended == []


def test_a_body_may_have_more_bytes_around_its_chunks_than_in_them() -> None:
    with guarded(body_limit=True) as live, live.connect() as client:
        client.sendall(CHUNKED + b"1\r\nx\r\n" * MAX_HEAD + b"0\r\nTrailer: x\r\n\r\n")
        assert read_answer(client).startswith(b"HTTP/1.1 200")
        assert {name for name, _ in live.app.scopes[0]["headers"]} == {b"host", b"transfer-encoding"}


def test_a_trailer_that_does_not_end_is_refused() -> None:
    with guarded() as live, live.connect() as client:
        client.sendall(CHUNKED.replace(b"/small", b"/slow") + b"0\r\n")
        wait_until(lambda: len(live.app.scopes) == 1)
        client.sendall(b"Trailer: " + b"x" * (MAX_HEAD + 1))
        assert problem(read_all(client))["status"] == 431
        wait_until(lambda: live.app.ended == ["/slow"])


@pytest.mark.parametrize("last", [b"Upgrade, HTTP2-Settings", b"close, Upgrade"])
@pytest.mark.parametrize(
    "body",
    [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"],
    ids=["length", "chunks"],
)
def test_a_request_that_asks_for_another_protocol_is_answered_in_this_one(last: bytes, body: bytes) -> None:
    ask = b"POST /body HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: "
    with guarded(body_limit=True) as live, live.connect() as client:
        client.sendall(ask + b"Upgrade\r\n" + body)
        read_answer(client)
        client.sendall(ask + b"Upgrade\r\n" + body + REQUEST + ask + last + b"\r\n" + body)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client).count(b"HTTP/1.1 200") == 3
        assert live.app.bodies == [b"abc"] * 3


def test_spaces_around_a_header_are_no_part_of_it() -> None:
    with guarded() as live, live.connect() as client:
        client.sendall(REQUEST[:-2] + b"X: \t a b\t \r\n\r\n")
        read_answer(client)
        assert (b"x", b"a b") in live.app.scopes[0]["headers"]


def test_an_older_client_gets_no_chunks() -> None:
    with guarded() as live, live.connect() as client:
        client.sendall(b"GET /stream HTTP/1.0\r\n\r\n")
        live.app.release.set()
        start, _, body = read_all(client).partition(b"\r\n\r\n")  # the answer ends with the connection
        assert body == b"begunended"
        assert b"transfer-encoding" not in start.lower()


def test_an_older_client_is_not_told_to_continue() -> None:
    with guarded(body_limit=True) as live, live.connect() as client:
        client.sendall(b"POST /small HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc")
        assert read_all(client).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", ["/large", "/whole"], ids=["in pieces", "at once"])
def test_a_client_that_does_not_read_its_answer_is_cut(path: str) -> None:
    with guarded(stream_seconds=SHORT) as live, live.connect() as client:
        client.sendall(head("GET", path))
        wait_until(lambda: live.app.ended == [path] and live.connections() == 0)
        assert len(read_all(client)) < 64 * len(CHUNK)


def read_slowly(client: socket.socket) -> int:
    """Bytes until the server closes, 5 ms for a few kilobytes."""
    received = 0
    with suppress(ConnectionResetError):
        while piece := client.recv(16_384):
            received += len(piece)
            time.sleep(0.005)
    return received


def test_a_client_that_reads_slowly_is_served_within_the_limit() -> None:
    with guarded(stream_seconds=LONG) as live, live.connect() as client:
        client.sendall(head("GET", "/large", "Connection: close"))
        started = time.monotonic()
        assert read_slowly(client) > 64 * len(CHUNK)
        assert time.monotonic() - started > 2 * SHORT, "this client was not slow: the test proves nothing"


def test_all_the_waiting_for_a_slow_reader_is_limited() -> None:
    """It takes something all the time, so that no single wait is long."""
    with guarded(stream_seconds=SHORT) as live, live.connect() as client:
        for _ in range(3):
            client.sendall(REQUEST)
            read_answer(client)
        client.sendall(head("GET", "/large", "Connection: close"))
        assert 0 < read_slowly(client) < 64 * len(CHUNK)
        wait_until(lambda: live.connections() == 0)


def test_more_connections_than_there_may_be_are_told_to_come_back() -> None:
    with guarded(max_connections=3) as live, ExitStack() as stack:
        kept = [stack.enter_context(live.connect()) for _ in range(3)]
        wait_until(lambda: live.connections() == 3)
        with live.connect() as late:
            late.sendall(REQUEST)
            answer = read_all(late)
            assert problem(answer)["status"] == 503
            assert b"retry-after: 1\r\nretry-after-ms: 1000\r\n" in answer.lower()
        assert live.connections() == 3
        kept[0].sendall(REQUEST)
        assert read_answer(kept[0]).startswith(b"HTTP/1.1 200")  # those who are in notice nothing
        kept[1].close()
        wait_until(lambda: live.connections() == 2)
        with live.connect() as next_one:
            next_one.sendall(REQUEST)
            assert read_answer(next_one).startswith(b"HTTP/1.1 200")


def test_what_is_refused_before_it_is_served_is_counted() -> None:
    with guarded(max_connections=3) as live:
        for sent in (b"no HTTP\r\n\r\n", REQUEST[:-2] + b"X: " + b"x" * MAX_HEAD):
            with live.connect() as client:
                client.sendall(sent)
                read_all(client)
        wait_until(lambda: live.connections() == 0)
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(live.connect())
            wait_until(lambda: live.connections() == 3)
            with live.connect() as late:
                late.sendall(REQUEST)
                read_all(late)
        assert live.refused == ["malformed-request", "headers-too-large", "overloaded"]
        assert set(live.refused) == set(PROTOCOL_REFUSALS)


def test_one_that_is_turned_away_and_stays_is_cut() -> None:
    with guarded(max_connections=1) as live, live.connect(), live.connect() as late:
        drip(late, REQUEST * 100, until=lambda: False)


@pytest.mark.parametrize(
    ("sent", "answered"),
    [(REQUEST, 1), (REQUEST + CHUNKED + b"no length\r\n", 0)],
    ids=["stops sending", "is cut first"],
)
def test_one_that_is_turned_away_leaves_no_error(
    sent: bytes, answered: int, caplog: pytest.LogCaptureFixture
) -> None:
    with guarded(max_connections=1) as live, live.connect() as kept:
        wait_until(lambda: live.connections() == 1)
        with live.connect() as late:
            late.sendall(sent)
            assert read_all(late).count(b"HTTP/1.1 503") == answered
            with suppress(OSError):  # it is cut
                late.shutdown(socket.SHUT_WR)
            kept.sendall(REQUEST)
            read_answer(kept)  # the server has seen the end
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes_are_answered_though_there_are_too_many_connections(method: str) -> None:
    with guarded(max_connections=1) as live, live.connect():
        wait_until(lambda: live.connections() == 1)
        for path in sorted(HEALTH):
            with live.connect() as probe:
                probe.sendall(head(method, path))
                answer, _, body = read_all(probe).partition(b"\r\n\r\n")  # and then it is closed
                assert answer.startswith(b"HTTP/1.1 200")
                assert b"connection: close" in answer.lower()
                assert body == (b"small" if method == "GET" else b"")
        with live.connect() as late:
            late.sendall(head(method, "/v1/models"))
            answer, _, body = read_all(late).partition(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"application/json" in answer
            assert (b"too many open connections" in body) is (method == "GET")
        assert live.app.ended == sorted(HEALTH)
        assert live.connections() == 1


def test_connections_for_probes_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "EXTRA_SECONDS", SHORT)
    with guarded(max_connections=1) as live, live.connect():
        with live.connect() as silent, live.connect() as dripping, live.connect() as unending:
            unending.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n")
            assert read_all(silent) == b""
            drip(dripping, b"GET /" + b"x" * 10_000, until=lambda: False)
            assert read_all(unending) == b""
        assert live.app.ended == []


def test_connections_for_probes_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "EXTRA_SECONDS", LONG)
    with guarded(max_connections=1) as live, live.connect(), ExitStack() as stack:
        extra = [stack.enter_context(live.connect()) for _ in range(MAX_EXTRA)]
        with live.connect() as late:
            assert problem(read_all(late))["status"] == 503  # at once, before it has asked
        extra[0].sendall(head("GET", "/livez"))
        assert read_all(extra[0]).startswith(b"HTTP/1.1 200")
        with live.connect() as probe:  # in its place
            probe.sendall(head("GET", "/livez"))
            assert read_all(probe).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("target", "path", "raw", "query"),
    [
        ("http://x/livez", "/livez", b"/livez", b""),
        ("HTTPS://user@x:8000/a%20b?c=d&e=http://f/g", "/a b", b"/a%20b", b"c=d&e=http://f/g"),
        ("http://x", "/", b"/", b""),
        ("http://x?c=d", "/", b"/", b"c=d"),
        ("/http://x/livez", "/http://x/livez", b"/http://x/livez", b""),
    ],
)
def test_a_target_may_be_a_whole_url(target: str, path: str, raw: bytes, query: bytes) -> None:
    with guarded(max_connections=1) as live, live.connect() as client:
        for _ in range(2):
            client.sendall(head("GET", target))
            assert read_answer(client).startswith(b"HTTP/1.1 200")
        scope = live.app.scopes[-1]
        assert (scope["path"], scope["raw_path"], scope["query_string"]) == (path, raw, query)
        assert (b"host", b"a") in scope["headers"]
        with live.connect() as probe:
            probe.sendall(head("GET", "http://x/livez"))
            assert read_all(probe).startswith(b"HTTP/1.1 200")


def ask_and_half_close(live: Guarded, path: str) -> socket.socket:
    """The server has seen the end when this returns."""
    client = live.connect()
    client.sendall(head("GET", path))
    wait_until(lambda: len(live.app.scopes) == 1)
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1, socket.MSG_PEEK) == b"H"
    return client


def test_a_client_that_only_stops_sending_gets_its_answer() -> None:
    with guarded() as live, ask_and_half_close(live, "/slow") as client:
        live.app.release.set()
        answer = read_all(client)  # until the server closes
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nsmall")
        assert (live.app.ended, live.app.left) == (["/slow"], [])
        wait_until(lambda: live.connections() == 0)


@pytest.mark.parametrize("path", ["/slow", "/stream"])
def test_a_client_that_leaves_ends_its_request(path: str) -> None:
    with guarded() as live:
        with live.connect() as client:
            client.sendall(head("GET", path))
            wait_until(lambda: len(live.app.scopes) == 1)
        wait_until(lambda: live.app.left == [path] and live.connections() == 0)


def test_a_client_that_leaves_after_it_stopped_sending_ends_its_request() -> None:
    with guarded() as live:
        ask_and_half_close(live, "/slow").close()
        wait_until(lambda: live.app.left == ["/slow"] and live.connections() == 0)


def test_a_client_that_stopped_sending_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "WAITS", [0.001] * len(FIRST_BYTES))
    with guarded() as live, ask_and_half_close(live, "/slow") as client:
        assert read_all(client) == FIRST_BYTES
        wait_until(lambda: live.app.left == ["/slow"] and live.connections() == 0)


@pytest.mark.parametrize("path", ["/large", "/whole"], ids=["in pieces", "at once"])
def test_a_client_that_stops_sending_gets_a_long_answer(path: str) -> None:
    with guarded() as live, live.connect() as client:
        client.sendall(head("GET", path))
        wait_until(lambda: len(live.app.scopes) == 1)
        client.shutdown(socket.SHUT_WR)
        assert len(read_all(client)) > 64 * len(CHUNK)


def test_requests_that_follow_each_other_at_once_are_all_answered() -> None:
    with guarded() as live, live.connect() as client:
        client.sendall(3 * REQUEST)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client).count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize(
    ("sent", "answers"),
    [(REQUEST * 2 * MAX_AHEAD, MAX_AHEAD + 1), (REQUEST + b"\x16\x03\x01", 2), (REQUEST + REQUEST[:-1] * 9_999, 2)],
    ids=["too many", "no HTTP", "too large a head"],
)
def test_what_is_sent_ahead_and_refused_harms_no_earlier_request(sent: bytes, answers: int) -> None:
    with guarded() as live, live.connect() as client:
        client.sendall(head("GET", "/slow"))
        wait_until(lambda: len(live.app.scopes) == 1)
        client.sendall(sent)
        live.app.release.set()
        assert read_all(client).count(b"HTTP/1.1 200 OK") == answers


def test_a_client_that_leaves_ends_the_request_before_those_it_sent_ahead() -> None:
    with guarded() as live:
        with live.connect() as client:
            client.sendall(head("GET", "/slow") * 2)
            wait_until(lambda: len(live.app.scopes) == 1)
        wait_until(lambda: live.app.left == ["/slow"] and live.connections() == 0)
        assert len(live.app.scopes) == 1


@pytest.mark.parametrize(
    "sent", [b"", REQUEST[:20], head("POST", "/slow", "Content-Length: 9") + b"abc"],
    ids=["nothing", "a part of a head", "a part of a body"],
)  # fmt: skip
def test_a_client_that_stops_before_its_request_is_whole_is_closed(sent: bytes) -> None:
    with guarded() as live, live.connect() as client:
        client.sendall(REQUEST)
        read_answer(client)
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""
        wait_until(lambda: live.connections() == 0)


def post(length: int) -> bytes:
    return head("POST", "/small", f"Content-Length: {length}")


def test_an_oversized_body_is_refused_before_it_is_sent() -> None:
    with guarded(body_limit=True) as live, live.connect() as client:
        client.sendall(post(MAX_BODY + 1))
        assert b"HTTP/1.1 413" in client.recv(4096)
        assert live.app.ended == []


def test_a_sender_of_a_refused_body_can_finish_and_go_on() -> None:
    with guarded(body_limit=True) as live, live.connect() as client:
        client.sendall(post(20 * MAX_BODY) + b"x" * 20 * MAX_BODY)
        refused = b""
        while b'"status":413' not in refused:
            refused += client.recv(4096)
        client.sendall(REQUEST)
        assert read_answer(client).endswith(b"small")


def test_a_client_that_may_leave_the_refused_body_out_is_not_waited_for() -> None:
    """Its next request would be taken for that body."""
    with guarded(body_limit=True) as live, live.connect() as client:
        client.sendall(head("POST", "/small", f"Content-Length: {MAX_BODY + 1}", "Expect: 100-continue"))
        answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer


def test_a_body_that_a_client_was_asked_for_leaves_the_connection_open() -> None:
    with guarded(body_limit=True) as live, live.connect() as client:
        client.sendall(head("POST", "/small", "Content-Length: 2", "Expect: 100-continue"))
        assert client.recv(4096).startswith(b"HTTP/1.1 100 ")
        client.sendall(b"{}")
        assert b"connection: close" not in read_answer(client)
        client.sendall(REQUEST)
        assert read_answer(client).endswith(b"small")


def test_a_refused_body_that_drips_in_is_cut() -> None:
    with guarded(body_limit=True, body_seconds=SHORT) as live, live.connect() as client:
        client.sendall(post(MAX_BODY + 1))
        assert b"HTTP/1.1 413" in client.recv(4096)
        drip(client, b"x" * 10_000, until=lambda: live.connections() == 0)
        assert live.connections() == 0


def test_a_refused_body_that_does_not_end_is_cut() -> None:
    with guarded(body_limit=True) as live, live.connect() as client:
        client.sendall(post(10 * MAX_DISCARD))
        with pytest.raises(OSError, match="(?i)reset|pipe"):
            client.sendall(CHUNK * (2 * MAX_DISCARD // len(CHUNK)))
        assert live.connections() == 0


def test_a_connection_is_watched_again_after_a_refused_body() -> None:
    with guarded(body_limit=True, header_seconds=SHORT) as live, live.connect() as client:
        client.sendall(post(MAX_BODY + 1))
        assert b"HTTP/1.1 413" in client.recv(4096)
        client.sendall(b"x" * (MAX_BODY + 1))
        read_all(client)  # it is cut, though the keep-alive limit is a minute
        assert live.connections() == 0
