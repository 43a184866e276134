"""deterministic=true over a real socket: equal bytes, pictures that can be linked and cached, clear refusals."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import structs

from service.local import create_app
from tests.service.conftest import Running, running, tiny_settings

FIELDS = {"model": "dit", "class": "cat", "steps": 12, "seed": 7, "deterministic": "true", "format": "png"}
KEY = "alice-has-a-secret-key"
# What Chromium sends for an <img>.
IMG = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"


@pytest.fixture(scope="module")
def live(checkpoints: Path) -> Iterator[Running]:
    with running(create_app(tiny_settings(checkpoints))) as server:
        yield server


def post(live: Running, **changes: Any) -> httpx.Response:
    return httpx.post(f"{live.url}/generate", params=FIELDS | changes, timeout=60)


def get(live: Running, headers: dict[str, str] | None = None, **changes: Any) -> httpx.Response:
    query = {name: value for name, value in (FIELDS | changes).items() if value is not None}
    return httpx.get(f"{live.url}/generate", params=query, headers=headers, timeout=60)


@pytest.mark.parametrize("model", ["dit", "unet"])
def test_the_same_bytes_alone_and_in_a_crowd(live: Running, model: str) -> None:
    alone = post(live, model=model)
    assert alone.status_code == 200
    with ThreadPoolExecutor(12) as pool:
        crowd = [pool.submit(post, live, model=model, seed=seed, deterministic=seed % 2) for seed in range(20, 32)]
        same = [pool.submit(post, live, model=model), *(pool.submit(get, live, model=model) for _ in range(2))]
        for answer in same:
            assert answer.result().content == alone.content
        assert all(answer.result().status_code == 200 for answer in crowd)


def test_a_known_picture_costs_no_evaluation(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    first = get(live)
    etag = first.headers["etag"]
    assert etag.startswith('"')  # a strong one
    runner, launched = live.app.state.local.core.runners["dit"], []
    launch = runner.launch
    monkeypatch.setattr(runner, "launch", lambda tasks: launched.append(len(tasks)) or launch(tasks))
    for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        again = get(live, {"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert again.headers["cache-control"] == first.headers["cache-control"]
    assert launched == []
    for unknown in ('"other"', f"junk{etag}junk"):
        assert get(live, {"If-None-Match": unknown}).status_code == 200
    assert len(launched) == 24  # these two ran, so the list would have shown a step


def test_an_etag_names_one_answer(live: Running) -> None:
    changed: tuple[dict[str, Any], ...] = (
        {}, {"seed": 8}, {"class": "dog"}, {"steps": 11}, {"guidance": 2}, {"n": 2}, {"format": "webp"},
        {"sampler": "ddim"}, {"model": "unet"}, {"spacing": "shifted"},
    )  # fmt: skip
    tags = {get(live, **changes).headers["etag"] for changes in changed}
    assert len(tags) == len(changed)


def test_an_etag_names_the_build_and_the_rows(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = live.app.state.handler
    before = get(live).headers["etag"]
    cards = handler.engine.cards
    monkeypatch.setitem(cards, "dit", structs.replace(cards["dit"], fixed_rows=99))
    other_rows = get(live, {"If-None-Match": before})
    assert (other_rows.status_code, "etag" in other_rows.headers) == (200, True)
    assert other_rows.headers["etag"] != before
    monkeypatch.undo()
    object.__setattr__(handler, "version", "99.0.0")
    assert get(live).headers["etag"] != before
    object.__setattr__(handler, "version", "none")


def test_an_answer_whose_etag_changes_is_not_cached(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = iter(['"before"', '"after"'])
    monkeypatch.setattr(type(live.app.state.handler), "etag", lambda self, params, form: next(tags))
    answer = get(live)
    assert (answer.headers["cache-control"], "etag" in answer.headers) == ("no-store", False)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"deterministic": None}, "deterministic"),
        ({"deterministic": "false"}, "deterministic"),
        ({"seed": None}, "seed"),
        ({"format": "json"}, "format"),
        ({"preview": 2}, "preview"),
        ({"class": "cow"}, "class"),
        ({"steps": "1_0"}, "steps"),
    ],
)
def test_get_refuses_what_cannot_be_cached(live: Running, changes: dict[str, Any], field: str) -> None:
    answer = get(live, **changes)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field
    assert answer.headers["cache-control"] == "no-store"
    assert "etag" not in answer.headers


def test_get_says_to_use_post(live: Running) -> None:
    answer = httpx.get(f"{live.url}/generate?model=dit&class=cat").json()
    assert answer["errors"][0]["message"] == (
        "GET answers only with deterministic=true and a seed, so that its picture can be cached: "
        "add deterministic and seed, or use POST"
    )


def test_what_post_answers_is_never_cached(live: Running) -> None:
    answer = post(live)
    assert (answer.headers["cache-control"], "etag" in answer.headers) == ("no-store", False)


def test_a_picture_is_cached_privately_where_there_are_keys(live: Running, checkpoints: Path) -> None:
    assert get(live).headers["cache-control"] == "public, max-age=3600"
    with running(create_app(tiny_settings(checkpoints, api_keys={"alice": {"key": KEY}}))) as locked:
        assert get(locked, {"X-API-Key": KEY}).headers["cache-control"] == "private, max-age=3600"
        refused = get(locked)
        assert (refused.status_code, refused.headers["cache-control"]) == (401, "no-store")


def test_an_img_element_gets_a_picture(live: Running) -> None:
    answer = get(live, {"Accept": IMG}, format=None)
    assert (answer.headers["content-type"], answer.headers["vary"]) == ("image/webp", "Accept")
    assert "vary" not in get(live, {"Accept": IMG}).headers  # format=png says it all
    assert get(live, {"Accept": "application/json"}, format=None).status_code == 406


def test_caches_keep_answers_to_foreign_pages_apart(checkpoints: Path) -> None:
    origin = "https://example.org"
    with running(create_app(tiny_settings(checkpoints, cors_origins=[origin]))) as shared:
        assert get(shared).headers["vary"] == "Origin"
        answer = get(shared, {"Origin": origin}, format=None)
        assert answer.headers["access-control-allow-origin"] == origin
        assert answer.headers["vary"] == "Accept, Origin"


def test_models_say_whether_the_mode_works(live: Running) -> None:
    assert [model["deterministic"] for model in live.client.get("/models").json()["models"]] == [True, True]


def test_the_mode_is_refused_where_it_does_not_work(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = live.app.state.handler.engine.cards
    monkeypatch.setitem(cards, "dit", structs.replace(cards["dit"], repeats_itself=False))
    for answer in (post(live), get(live)):
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "deterministic"
    assert post(live, deterministic="false").status_code == 200
    assert post(live, model="unet").status_code == 200
