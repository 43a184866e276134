"""What surrounds every request, over a real socket: limits, CORS, headers, the port of /metrics."""

import select
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from benchmarks.client import reserved_port
from service.local import create_app
from service.web.middleware import MAX_FILES_BODY, MAX_HEAD, MAX_HELD, MAX_QUERY
from tests.service.conftest import Running, running, tiny_settings
from tests.service.process import serving
from tests.service.sockets import connect, head
from tests.waiting import wait_until

FRIEND, STRANGER = "https://friend.example", "https://stranger.example"
KEY = "alice-has-a-secret-key"


@pytest.fixture(scope="module")
def strict(checkpoints: Path) -> Iterator[Running]:
    """Half a second for a body, one friend, and a key."""
    settings = tiny_settings(checkpoints, body_seconds=0.5, cors_origins=[FRIEND], api_keys={"alice": {"key": KEY}})
    with running(create_app(settings)) as live:
        live.client.headers["X-API-Key"] = KEY
        yield live


def test_a_long_query_is_refused(server: Running) -> None:
    path = "/generate?model=dit&class=0&"
    fits = path + "x" * (MAX_QUERY - len(path) + len("/generate?"))
    assert server.client.post(fits).status_code == 422  # read, and found to be nonsense
    refused = server.client.post(fits + "x")
    assert refused.status_code == 414
    assert refused.json()["detail"] == "the query is longer than 4 KiB"


def test_a_large_head_is_refused_though_it_comes_whole(server: Running) -> None:
    assert server.client.get("/livez", headers={"X": "x" * (MAX_HEAD // 2)}).status_code == 200
    for answer in (
        server.client.get("/livez", headers={"X": "x" * MAX_HEAD}),
        server.client.get("/livez/" + "x" * MAX_HEAD),
    ):
        assert answer.status_code == 431
        assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_a_large_body_is_refused(server: Running, chunked: bool) -> None:
    body = b" " * (MAX_FILES_BODY + 1)
    headers = {"Content-Type": "application/json"}
    refused = server.client.post("/generate", content=iter([body]) if chunked else body, headers=headers)
    assert (refused.status_code, refused.json()["type"]) == (413, "urn:problem:body-too-large")
    assert refused.json()["errors"] == [{"field": "body", "message": "must have at most 12 MiB"}]
    assert len(refused.content) < 1000
    assert refused.headers["content-type"] == "application/problem+json"
    assert server.client.get("/livez").status_code == 200


def test_large_bodies_that_would_fill_the_memory_are_refused(server: Running) -> None:
    almost = head("POST", "/generate", f"Content-Length: {MAX_FILES_BODY}") + bytes(MAX_FILES_BODY - 1)
    with ExitStack() as stack:
        clients = []
        for _ in range(MAX_HELD // MAX_FILES_BODY + 1):  # each waits for its last byte
            clients.append(stack.enter_context(connect(server.url)))
            clients[-1].sendall(almost)
        answered, _, _ = select.select(clients, [], [], 60)
        assert answered[0].recv(4096).startswith(b"HTTP/1.1 503 ")
        assert server.client.post("/generate", json={}).status_code == 422  # small ones have room
    wait_until(lambda: server.client.post("/generate", content=bytes(MAX_FILES_BODY)).status_code == 422)


def test_a_body_that_drips_in_is_refused(strict: Running) -> None:
    with connect(strict.url) as client:
        client.sendall(head("POST", "/generate", f"X-API-Key: {KEY}", "Content-Length: 99"))
        received = b""
        client.settimeout(0.02)
        for _ in range(98):  # the length that it promised is never reached
            client.sendall(b" ")
            with suppress(TimeoutError):
                received += client.recv(4096)
            if b"HTTP/1.1 408" in received:
                break
        assert b"connection: close" in received.lower()


def test_other_origins_are_told_nothing_by_default(server: Running) -> None:
    answer = server.client.get("/models", headers={"Origin": STRANGER})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = {"Origin": STRANGER, "Access-Control-Request-Method": "POST"}
    asked = server.client.options("/generate", headers=preflight)
    assert asked.status_code == 405
    assert not [name for name in asked.headers if name.startswith("access-control")]


def test_a_named_origin_may_call_and_read(strict: Running) -> None:
    answer = strict.client.post("/generate?model=dit&class=0&steps=1", headers={"Origin": FRIEND})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == FRIEND
    assert "X-Seed" in answer.headers["access-control-expose-headers"]


SENT_BY = {
    "this API": "accept,authorization,content-type,if-none-match,x-api-key,x-request-id",
    "openai-node": (
        "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-package-version,"
        "x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout"
    ),
    "OpenTelemetry": "baggage,content-type,traceparent,tracestate",
    "Open Inference, binary": "content-type,inference-header-content-length",
}


@pytest.mark.parametrize("client", SENT_BY)
def test_the_preflight_of_every_client_passes(client: str, strict: Running) -> None:
    preflight = {"Origin": FRIEND, "Access-Control-Request-Method": "POST"}
    preflight["Access-Control-Request-Headers"] = SENT_BY[client]
    asked = httpx.options(f"{strict.url}/v1/images/generations", headers=preflight)  # browsers ask without a key
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, FRIEND)
    allowed = {name.strip().lower() for name in asked.headers["access-control-allow-headers"].split(",")}
    assert set(SENT_BY[client].split(",")) <= allowed


# What every script may read, and what only proxies and browsers themselves have a use for.
SAFE = {"cache-control", "content-language", "content-length", "content-type", "expires", "last-modified", "pragma"}
NOT_FOR_SCRIPTS = {"connection", "date", "server", "transfer-encoding", "vary", "x-accel-buffering"}
NOT_FOR_SCRIPTS |= {"x-content-type-options"}


def test_scripts_may_read_every_header_that_is_sent(strict: Running) -> None:
    """Each kind of answer; a browser hides the headers that are not exposed."""
    binary = {
        "inputs": [{"name": "class", "datatype": "INT64", "shape": [1], "data": [0]}],
        "outputs": [{"name": "images", "parameters": {"binary_data": True}}],
    }
    drawn = "/generate?model=dit&class=0&steps=1"
    origin = {"Origin": FRIEND}
    answers = [
        strict.client.post(drawn, headers=origin),
        strict.client.post(drawn + "&deterministic=true&seed=1", headers=origin),
        strict.client.post(drawn + "&preview=1", headers=origin | {"Accept": "text/event-stream"}),
        strict.client.post("/v2/models/dit/infer", headers=origin, json=binary),
        strict.client.post("/nowhere", headers=origin),
        strict.client.put("/generate", headers=origin),
        httpx.get(f"{strict.url}/models", headers=origin),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 404, 405, 401]
    for answer in answers:
        sent = {name for name in answer.headers if not name.startswith("access-control-")}
        exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert sent - SAFE - NOT_FOR_SCRIPTS <= exposed, answer.request.url


def test_a_failure_inside_is_an_answer_that_a_browser_may_read(
    checkpoints: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(tiny_settings(checkpoints, cors_origins=[FRIEND]))

    async def broken() -> None:
        raise RuntimeError("on purpose")

    app.add_api_route("/broken", broken)
    with running(app) as live:
        answer = live.client.get("/broken", headers={"Origin": FRIEND, "X-Request-Id": "my-request"})
    assert (answer.status_code, answer.json()["detail"]) == (500, "the service failed on this request")
    assert answer.headers["access-control-allow-origin"] == FRIEND
    assert answer.headers["x-request-id"] == "my-request"
    assert "RuntimeError: on purpose" in caplog.text


def test_a_stranger_may_not(strict: Running) -> None:
    preflight = {"Origin": STRANGER, "Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{strict.url}/generate", headers=preflight).status_code == 400
    answer = strict.client.get("/models", headers={"Origin": STRANGER})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/", "no-cache"),
        ("/static/page.js", "no-cache"),
        ("/models", "no-store"),
        ("/openapi.json", "no-store"),
        ("/livez", "no-store"),
        ("/v2/health/ready", "no-store"),
        ("/generate", "no-store"),
        ("/v1/nowhere", "no-store"),
        ("/generate?model=dit&class=0&steps=1&seed=1&deterministic=true", "public, max-age=3600"),
    ],
)
def test_every_answer_has_the_common_headers_once(server: Running, path: str, kept: str) -> None:
    headers = server.client.get(path).headers
    names = ("cache-control", "x-content-type-options")
    assert [headers.get_list(name) for name in names] == [[kept], ["nosniff"]]
    assert len(headers.get_list("x-request-id")) == 1


def test_metrics_on_their_own_port(checkpoints: Path, tmp_path: Path) -> None:
    with (
        (tmp_path / "log").open("w+") as log,
        reserved_port() as port,
        serving(checkpoints, log, metrics_port=port) as (process, url),
    ):
        side = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/metrics").status_code == 404
        assert "/metrics" not in httpx.get(f"{url}/openapi.json").json()["paths"]
        assert httpx.post(f"{url}/generate?model=dit&class=0&steps=1").status_code == 200
        text = httpx.get(f"{side}/metrics").text
        assert 'diffusion_requests_total{model="dit",outcome="ok"} 1.0' in text
        assert httpx.post(f"{side}/generate?model=dit&class=0").status_code == 404
        process.terminate()
        assert process.wait(timeout=60) == 0
