"""deterministic=true over a real socket: equal bytes, strong ETags, 304, and a refusal where it does not work."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.app import create_app
from tests.service.conftest import Running, running, tiny_settings

FIELDS = {"model": "dit", "class": "cat", "steps": 12, "seed": 7, "deterministic": "true"}


@pytest.fixture(scope="module")
def live(checkpoints: Path) -> Iterator[Running]:
    with running(create_app(tiny_settings(checkpoints))) as server:
        yield server


def ask(live: Running, known: str = "", **changes: int | str) -> httpx.Response:
    headers = {"If-None-Match": known} if known else {}
    return httpx.post(f"{live.url}/generate", params=FIELDS | changes, headers=headers, timeout=60)


@pytest.mark.parametrize("model", ["dit", "unet"])
def test_the_same_bytes_alone_and_in_a_crowd(live: Running, model: str) -> None:
    alone = ask(live, model=model)
    assert alone.status_code == 200
    with ThreadPoolExecutor(12) as pool:
        crowd = [pool.submit(ask, live, model=model, seed=seed, deterministic=seed % 2) for seed in range(20, 32)]
        same = [pool.submit(ask, live, model=model) for _ in range(3)]
        for answer in same:
            assert answer.result().content == alone.content
            assert answer.result().headers["etag"] == alone.headers["etag"]
        assert all(answer.result().status_code == 200 for answer in crowd)


def test_a_known_etag_costs_nothing(live: Running) -> None:
    first = ask(live)
    etag = first.headers["etag"]
    assert etag.startswith('"')  # a strong one
    before = live.metric("diffusion_requests_total", model="dit")
    for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        again = ask(live, known)
        assert again.headers["cache-control"] == first.headers["cache-control"]
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert live.metric("diffusion_requests_total", model="dit") == before
    for unknown in ('"other"', f"junk{etag}junk"):
        assert ask(live, unknown).status_code == 200


def test_an_etag_names_one_answer(live: Running) -> None:
    tags = {ask(live, "", **changes).headers["etag"] for changes in (
        {}, {"seed": 8}, {"class": "dog"}, {"steps": 11}, {"guidance": 2}, {"n": 2}, {"format": "webp"},
        {"sampler": "ddim"}, {"model": "unet"},
    )}  # fmt: skip
    assert len(tags) == 9


def test_no_etag_where_the_bytes_are_not_promised(live: Running) -> None:
    for changes in ({"deterministic": "false"}, {"format": "json"}):
        assert "etag" not in ask(live, **changes).headers
    no_seed = {name: value for name, value in FIELDS.items() if name != "seed"}
    assert "etag" not in httpx.post(f"{live.url}/generate", params=no_seed, timeout=60).headers


def test_models_tell_whether_it_works(live: Running) -> None:
    assert [model["deterministic"] for model in live.client.get("/models").json()["models"]] == [True, True]


def test_where_it_does_not_work_it_is_refused(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    core = live.app.state.generator.core
    monkeypatch.setitem(core.repeats_itself, "dit", False)
    answer = ask(live)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "deterministic"
    assert ask(live, deterministic="false").status_code == 200
    assert ask(live, model="unet").status_code == 200
