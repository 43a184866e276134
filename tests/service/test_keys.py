"""API keys: how they are given, compared, counted; and over a real socket, who gets in."""

import asyncio
import hmac
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from service.api_keys import ApiKey
from service.errors import QuotaExceeded, Unauthorized
from service.local import create_app
from service.observe.scoreboard import Layout, Scoreboard
from service.settings import Settings, SettingsError, load_settings
from service.web.keys import KeyMiddleware, KeyRing
from tests.service.conftest import Running, running
from tests.service.networks import simulated
from tests.waiting import wait_until

ALICE, BOB, CAROL = "alice-has-a-secret-key", "bob-has-another-secret", "carol-has-a-third-secret"


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key}".encode())]


class Clock:
    """Time that only the test moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def keyring(keys: dict[str, ApiKey], clock: Callable[[], float] = time.monotonic) -> KeyRing:
    return KeyRing(keys, Scoreboard(Layout((), keys), entries=2), 1, clock)


def ring_of(clock: Clock, **quota: Any) -> KeyRing:
    return keyring({"alice": ApiKey.model_validate({"key": ALICE} | quota)}, clock)


def given(monkeypatch: pytest.MonkeyPatch, text: str) -> Settings:
    monkeypatch.setenv("DIFFUSION_API_KEYS", text)
    return load_settings()


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    quota = {"requests_per_second": 5, "burst": 10, "concurrency": 4}
    keys = given(monkeypatch, json.dumps({"alice": {"key": ALICE} | quota, "bob": BOB})).api_keys
    assert keys["alice"].key.get_secret_value() == ALICE
    assert keys["alice"].model_dump(exclude={"key"}) == quota
    assert keys["bob"].key.get_secret_value() == BOB
    assert (keys["bob"].requests_per_second, keys["bob"].concurrency) == (None, None)


def test_one_plain_key_needs_no_json(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = given(monkeypatch, ALICE).api_keys
    assert [(name, key.key.get_secret_value()) for name, key in keys.items()] == [("default", ALICE)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "at least 16"),  # an empty variable does not open the service
        ("{}", "names no key"),
        ("short-secret-12", "at least 16"),
        ("a secret with spaces in it", "visible ASCII"),
        ("s\u00e9cret-s\u00e9cret-s\u00e9cret", "visible ASCII"),
        ('{"alice": {"key": "alice-has-a-secret-key"', "not a JSON object"),
        (
            '{"alice": {"key": "alice-has-a-secret-key", "speed": 3}}',
            "use one of burst, concurrency, key, requests_per_second",
        ),
        ('{"alice": {"key": "alice-has-a-secret-key", "burst": 3}}', "needs requests_per_second"),
        ('{"alice": {"key": "alice-has-a-secret-key", "concurrency": 0}}', "greater than or equal to 1"),
        ('{"alice": {"key": "alice-has-a-secret-key", "requests_per_second": 0}}', "greater than 0"),
        ('{"a b": "alice-has-a-secret-key"}', "a name is made of"),
        ('{"alice": "the-same-secret-key", "bob": "the-same-secret-key"}', "two names"),
    ],
)
def test_keys_that_cannot_be_used_are_refused_but_never_shown(
    monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    with pytest.raises(SettingsError, match=reason) as error:
        given(monkeypatch, text)
    assert "DIFFUSION_API_KEYS" in str(error.value)
    told = str(error.value) + "".join(line for line in traceback.format_exception_only(error.value.__cause__))
    assert "secret" not in told
    assert "s\u00e9cret" not in told


def test_settings_do_not_print_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = given(monkeypatch, ALICE)
    assert ALICE not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


@pytest.mark.parametrize("headers", [bearer(ALICE), [(b"authorization", b"bearer  " + ALICE.encode())]])
def test_a_bearer_token_is_a_key(headers: list[tuple[bytes, bytes]]) -> None:
    ring_of(Clock()).admit(headers)


def test_x_api_key_is_a_key_whatever_the_other_header_says() -> None:
    ring_of(Clock()).admit([*bearer("what some clients always send"), (b"x-api-key", ALICE.encode())])


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer(""),
        bearer(ALICE[:-1]),
        bearer(ALICE + "x"),
        bearer(ALICE.upper()),
        [(b"authorization", ALICE.encode())],
        [(b"authorization", b"Basic " + ALICE.encode())],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"\xff" * 20)],
    ],
    ids=str,
)
def test_anything_else_is_no_key(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Unauthorized):
        ring_of(Clock()).admit(headers)


def test_every_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def watched(known: bytes, digest: bytes) -> bool:
        compared.append((known, digest))
        return real(known, digest)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    keys = {name: ApiKey.model_validate({"key": key}) for name, key in zip("abc", (ALICE, BOB, CAROL), strict=True)}
    ring = keyring(keys)
    for key in (ALICE, CAROL):
        ring.admit(bearer(key))
    with pytest.raises(Unauthorized):
        ring.admit(bearer("nobody has this key"))
    assert len(compared) == 9
    assert {(len(known), len(digest)) for known, digest in compared} == {(32, 32)}  # SHA-256, not the keys


def test_the_rate_allows_a_burst_and_then_tells_when_to_come_back() -> None:
    clock = Clock()
    ring = ring_of(clock, requests_per_second=0.25, burst=3)
    for _ in range(3):
        ring.admit(bearer(ALICE)).end()
    with pytest.raises(QuotaExceeded) as error:
        ring.admit(bearer(ALICE))
    assert error.value.retry_after_seconds == 4
    clock.now += 3.9
    with pytest.raises(QuotaExceeded) as error:
        ring.admit(bearer(ALICE))
    assert error.value.retry_after_seconds == 1
    clock.now += 0.2
    ring.admit(bearer(ALICE)).end()
    clock.now += 1000  # the bucket holds no more than its burst
    for _ in range(3):
        ring.admit(bearer(ALICE)).end()
    with pytest.raises(QuotaExceeded):
        ring.admit(bearer(ALICE))


def test_without_a_burst_the_bucket_holds_one_second() -> None:
    ring = ring_of(Clock(), requests_per_second=2.5)
    for _ in range(3):
        ring.admit(bearer(ALICE))
    with pytest.raises(QuotaExceeded):
        ring.admit(bearer(ALICE))


def test_open_requests_are_counted_and_the_wait_is_that_of_earlier_ones() -> None:
    clock = Clock()
    ring = ring_of(clock, concurrency=2)
    first = ring.admit(bearer(ALICE))
    ring.admit(bearer(ALICE))
    with pytest.raises(QuotaExceeded) as error:
        ring.admit(bearer(ALICE))
    assert error.value.retry_after_seconds == 1  # nothing is known yet
    clock.now += 20
    first.end()
    ring.admit(bearer(ALICE))
    with pytest.raises(QuotaExceeded) as error:
        ring.admit(bearer(ALICE))
    assert error.value.retry_after_seconds == 10  # requests take 20 s, and two run


def test_a_request_that_finds_no_place_costs_no_token() -> None:
    ring = ring_of(Clock(), concurrency=1, requests_per_second=1, burst=2)
    first = ring.admit(bearer(ALICE))
    for _ in range(5):
        with pytest.raises(QuotaExceeded):
            ring.admit(bearer(ALICE))
    first.end()
    ring.admit(bearer(ALICE))


def test_quotas_are_of_each_key() -> None:
    keys = {name: ApiKey.model_validate({"key": key, "concurrency": 1}) for name, key in (("a", ALICE), ("b", BOB))}
    ring = keyring(keys)
    ring.admit(bearer(ALICE))
    ring.admit(bearer(BOB))
    with pytest.raises(QuotaExceeded):
        ring.admit(bearer(BOB))


def test_a_request_that_fails_gives_its_place_back() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("the application broke")

    async def nothing() -> Message:
        raise AssertionError("nobody should ask")

    async def ignore(message: Message) -> None:
        raise AssertionError(f"refused: {message}")

    keyed = KeyMiddleware(broken, ring_of(Clock(), concurrency=1))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="the application broke"):
            asyncio.run(keyed({"type": "http", "path": "/models", "headers": bearer(ALICE)}, nothing, ignore))


@pytest.fixture(scope="module")
def keyed(checkpoints: Path) -> Iterator[Running]:
    """10 ms a step, so that things can happen on the way; alice may do all, bob little."""
    models = {"dit": simulated(checkpoints / "dit", 10)}
    keys = {"alice": {"key": ALICE}, "bob": {"key": BOB, "concurrency": 1}, "carol": {"key": CAROL}}
    keys["carol"] |= {"requests_per_second": 0.01, "burst": 1}
    settings = Settings(models=models, device="cpu", max_rows=4, api_keys=keys)  # pyright: ignore
    with running(create_app(settings)) as live:
        live.client.headers["X-API-Key"] = ALICE
        yield live


def ask(server: Running, method: str, path: str, key: str | None = None) -> httpx.Response:
    """With this key only, or with none."""
    return httpx.request(method, server.url + path, headers={"Authorization": f"Bearer {key}"} if key else {})


GUARDED = [
    ("POST", "/generate?model=dit&class=0&steps=1"),
    ("POST", "/v1/images/generations"),
    ("GET", "/v1/models"),
    ("GET", "/v2"),
    ("GET", "/v2/models/dit"),
    ("GET", "/v2/models/dit/ready"),
    ("POST", "/v2/models/dit/infer"),
    ("GET", "/models"),
    ("GET", "/metrics"),
    ("GET", "/what/may/come/later"),
    ("GET", "//livez"),
    ("GET", "/livez/../models"),
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_guarded_paths_need_a_key(keyed: Running, method: str, path: str) -> None:
    for key in (None, "a key that nobody has"):
        refused = ask(keyed, method, path, key)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert refused.headers["X-Request-Id"]
    assert ask(keyed, method, path, ALICE).status_code != 401


@pytest.mark.parametrize(
    "path", ["/", "/static/page.css", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/openapi.json"]
)
def test_open_paths_need_no_key(keyed: Running, path: str) -> None:
    assert ask(keyed, "GET", path).status_code == 200


def test_every_dialect_refuses_in_its_own_form(keyed: Running) -> None:
    assert ask(keyed, "GET", "/models").json()["type"] == "urn:problem:unauthorized"
    assert ask(keyed, "GET", "/v1/models").json()["error"]["code"] == "unauthorized"
    assert "valid key" in ask(keyed, "GET", "/v2").json()["error"]


def test_the_rate_is_refused_over_http(keyed: Running) -> None:
    assert ask(keyed, "GET", "/models", CAROL).status_code == 200
    refused = ask(keyed, "GET", "/v1/models", CAROL)
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 90 <= int(refused.headers["Retry-After"]) <= 100


def test_a_stream_holds_its_place_until_its_client_leaves(keyed: Running) -> None:
    headers = {"Authorization": f"Bearer {BOB}", "Accept": "text/event-stream"}
    query = {"model": "dit", "class": 0, "steps": 250, "preview": 64}
    with httpx.stream("POST", f"{keyed.url}/generate", params=query, headers=headers, timeout=60) as stream:
        assert stream.status_code == 200, stream.read()
        events = stream.iter_bytes()  # kept, or its end would end the stream
        next(events)
        refused = ask(keyed, "GET", "/models", BOB)
        assert refused.status_code == 429
        assert refused.json()["detail"].startswith("this key may send 1 requests at once")
        assert ask(keyed, "GET", "/models", ALICE).status_code == 200
    wait_until(lambda: ask(keyed, "GET", "/models", BOB).status_code == 200)
    assert keyed.metric("diffusion_key_requests_total", key="bob", outcome="concurrency") >= 1
    wait_until(lambda: keyed.metric("diffusion_cancelled_evaluations_saved_total") > 0)  # its work has ended, too


def test_requests_are_counted_by_name_and_never_by_key(keyed: Running) -> None:
    def count(name: str, outcome: str) -> float:
        return keyed.metric("diffusion_key_requests_total", key=name, outcome=outcome)

    before = count("alice", "accepted"), count("", "unauthorized")
    ask(keyed, "GET", "/models", ALICE)
    ask(keyed, "GET", "/models", "a key that nobody has")
    assert count("", "unauthorized") == before[1] + 1
    assert count("alice", "accepted") >= before[0] + 1
    text = keyed.client.get("/metrics").text
    assert not any(key in text for key in (ALICE, BOB, CAROL))
