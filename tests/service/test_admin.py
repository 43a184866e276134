"""PUT /admin/models/NAME over a real socket: who may use it, what it refuses, and what other requests see of it."""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from pydantic import SecretStr
from safetensors.torch import load_file, save_file

from models.checkpoint import load_checkpoint, save_checkpoint
from models.files import CONFIG, GRAPH, WEIGHTS
from service import successor
from service.api_keys import ApiKey
from service.local import create_app
from service.settings import Settings, SettingsError, load_settings
from tests.checkpoints import write_checkpoint
from tests.service.conftest import Running, running, tiny_settings
from tests.service.networks import simulated
from tests.service.pictures import recipe

ADMIN, ALICE = "the-admin-has-a-secret-key", "alice-has-a-secret-key"
HEADERS = {"Authorization": f"Bearer {ADMIN}"}
LINK = {"model": "dit", "class": "cat", "steps": 4, "seed": 7, "deterministic": "true", "format": "png"}


def write_other(folder: Path, like: Path, seed: int = 1) -> Path:
    """The same network with other weights."""
    model, config = load_checkpoint(like)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_checkpoint(folder, model, config)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and other weights for one of them."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name in ("dit", "unet"):
        write_checkpoint(root / name, name)
    write_other(root / "staged/new", root / "dit")
    return root


def settings(folder: Path, **changes: Any) -> Settings:
    return tiny_settings(folder, admin_key=SecretStr(ADMIN), **changes)


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[Running]:
    with running(create_app(settings(folder))) as server:
        yield server


def put(live: Running, checkpoint: Any, model: str = "dit", **more: Any) -> httpx.Response:
    more = {"headers": HEADERS, "json": {"checkpoint": checkpoint}} | more
    return live.client.put(f"/admin/models/{model}", **more)


def sha256(folder: Path) -> str:
    return json.loads((folder / CONFIG).read_text())["sha256"]


def test_the_answer_is_the_new_card_and_all_answers_name_the_new_weights(folder: Path, live: Running) -> None:
    for checkpoint in ("staged/new", "dit"):
        before = live.card()
        answer = put(live, checkpoint)
        assert answer.status_code == 200
        assert answer.json() == live.card()
        assert answer.json() == before | {
            "weights_sha256": sha256(folder / checkpoint),
            "version": before["version"] + 1,
        }
        picture = live.client.post("/generate?model=dit&class=cat&steps=2").content
        assert recipe(picture)["weights_sha256"] == sha256(folder / checkpoint)
        facts = {"version": str(before["version"] + 1), "weights_sha256": sha256(folder / checkpoint)}
        assert live.metric("diffusion_model_info", model="dit", **facts) == 1
        assert live.metric("diffusion_model_info", model="dit") == 1  # the old one is told no more
    assert live.metric("diffusion_model_swaps_total", model="dit", outcome="ok") >= 2
    assert live.card("unet")["version"] == 1


def test_links_change_with_what_the_weights_mean(folder: Path, live: Running) -> None:
    """The same file of weights, read as another prediction on another schedule, draws another picture."""
    shutil.copytree(folder / "dit", other := folder / "staged/cosine")
    config = json.loads((other / CONFIG).read_text())
    (other / CONFIG).write_text(json.dumps(config | {"schedule": "cosine", "prediction": "v"}))
    found = []
    for checkpoint in ("dit", "staged/cosine"):
        assert put(live, checkpoint).status_code == 200
        answer = live.client.get("/generate", params=LINK)
        found.append((answer.content, answer.headers["etag"]))
    shutil.rmtree(other)
    assert sha256(folder / "dit") == live.card()["weights_sha256"]
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]


def test_links_change_with_the_weights(live: Running) -> None:
    pictures, tags = {}, {}
    for checkpoint in ("dit", "staged/new", "dit", "staged/new"):
        assert put(live, checkpoint).status_code == 200
        answer = live.client.get("/generate", params=LINK)
        assert pictures.setdefault(checkpoint, answer.content) == answer.content
        assert tags.setdefault(checkpoint, answer.headers["etag"]) == answer.headers["etag"]
    assert pictures["dit"] != pictures["staged/new"]
    assert tags["dit"] != tags["staged/new"]
    for checkpoint, status in (("staged/new", 304), ("dit", 200)):
        known = {"If-None-Match": tags[checkpoint]}
        assert live.client.get("/generate", params=LINK, headers=known).status_code == status


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-API-Key": ALICE}, {"Authorization": f"Bearer {ADMIN}x"}, {"Authorization": f"Basic {ADMIN}"}],
)
@pytest.mark.parametrize("path", ["/admin/models/dit", "/admin/models/none", "/admin/other"])
def test_only_the_admins_key_opens_it(folder: Path, path: str, headers: dict[str, str]) -> None:
    keys = {"alice": ApiKey(key=SecretStr(ALICE))}
    with running(create_app(settings(folder, api_keys=keys))) as closed:
        refused = closed.client.put(path, json={"checkpoint": "dit"}, headers=headers)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert closed.client.get("/models", headers={"X-API-Key": ALICE}).json()["models"][0]["version"] == 1


def test_the_admins_key_opens_nothing_else(folder: Path) -> None:
    keys = {"alice": ApiKey(key=SecretStr(ALICE))}
    with running(create_app(settings(folder, api_keys=keys))) as closed:
        assert put(closed, "dit").status_code == 200
        assert put(closed, "dit", headers={"X-API-Key": ADMIN}).status_code == 200
        assert closed.client.get("/models", headers=HEADERS).status_code == 401
        assert closed.client.post("/generate?model=dit&class=cat", headers=HEADERS).status_code == 401
        info = closed.client.get("/info", headers={"X-API-Key": ALICE}).text
    assert ADMIN not in info


def test_without_an_admin_key_the_route_does_not_exist(server: Running) -> None:
    nothing = server.client.put("/nothing/models/dit", json={"checkpoint": "dit"})
    answer = put(server, "dit")
    assert answer.status_code == nothing.status_code == 404
    assert answer.json()["detail"] == nothing.json()["detail"]
    assert not [path for path in server.client.get("/openapi.json").json()["paths"] if "admin" in path]


@pytest.mark.parametrize("key", ["short", "with a blank in between it", "ünïcode-is-no-header-value", 600 * "x"])
def test_a_key_that_cannot_be_used_is_refused_but_never_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_ADMIN_KEY", key)
    with pytest.raises(SettingsError, match="DIFFUSION_ADMIN_KEY") as caught:
        load_settings()
    assert key not in str(caught.value)


def test_a_client_must_not_have_the_admins_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_ADMIN_KEY", ALICE)
    monkeypatch.setenv("DIFFUSION_API_KEYS", ALICE)
    with pytest.raises(SettingsError, match="DIFFUSION_ADMIN_KEY must be none of DIFFUSION_API_KEYS") as caught:
        load_settings()
    assert ALICE not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "../outside", "staged/../../outside", "staged/../dit", "/", "link", "linked", "nothing", "a\0b",
     "drawn", "circle", 300 * "x", "x/" * 90, "~", "dit/config.json"],
)  # fmt: skip
def test_no_path_leads_out_of_the_checkpoints(path: str, folder: Path, live: Running) -> None:
    outside = folder.parent / "outside"
    if not outside.exists():
        shutil.copytree(folder / "dit", outside)
        (folder / "link").symlink_to(outside)
        (folder / "circle").symlink_to(folder / "circle")
        (folder / "linked").mkdir()
        (folder / "linked" / CONFIG).write_bytes((folder / "dit" / CONFIG).read_bytes())
        (folder / "linked" / WEIGHTS).symlink_to(outside / WEIGHTS)
        shutil.copytree(folder / "dit", folder / "drawn")
        (folder / "drawn" / GRAPH).symlink_to(outside / CONFIG)
    for given in (path, str(folder / "dit") if path == "/" else path):
        before = live.card()
        answer = put(live, given)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"] == "checkpoint"
        assert live.card() == before


def test_links_inside_of_the_checkpoints_are_followed(folder: Path, live: Running) -> None:
    (folder / "current").symlink_to(folder / "staged/new")
    assert put(live, "current").json()["weights_sha256"] == sha256(folder / "staged/new")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Other weights under a config that has no hash of them."""
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    reconfigure(folder, sha256="")


def reconfigure(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(values))


def first(weights: dict[str, Any], change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    name = sorted(weights)[0]
    return weights | {name: change(weights[name]).contiguous()}


def resize(folder: Path) -> None:
    """A sound checkpoint of a larger network."""
    _, config = load_checkpoint(folder)
    arguments = config.arguments | {"hidden_dim": 64}
    write_checkpoint(folder, "dit", arguments=arguments)


BREAKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "does not exist"),
    "torn": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "truncated or altered"),
    "no safetensors": (
        lambda f: (reconfigure(f, sha256=""), (f / WEIGHTS).write_bytes(b"\x80\x04pickle")),
        "is not a readable safetensors file",
    ),
    "other sizes": (lambda f: rewrite(f, lambda w: first(w, lambda t: t[:1])), "it has other sizes"),
    "a tensor is missing": (lambda f: rewrite(f, lambda w: dict(sorted(w.items())[1:])), "it lacks"),
    "not a number": (lambda f: rewrite(f, lambda w: first(w, lambda t: t * torch.nan)), "not finite"),
    "no JSON": (lambda f: (f / CONFIG).write_text("{"), "is not valid JSON"),
    "other classes": (lambda f: reconfigure(f, class_names=["cat", "cow", "0"]), "its class_names must be those"),
    "another network": (lambda f: write_checkpoint(f, "unet"), "its architecture and arguments must be those"),
    "a larger network": (resize, "its arguments must be those"),
    "too many steps": (lambda f: reconfigure(f, sampling={"steps": 1000}), "beyond DIFFUSION_MAX_STEPS"),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_checkpoint_leaves_the_old_one_serving(kind: str, folder: Path, live: Running) -> None:
    broken, (spoil, reason) = folder / "staged" / kind, BREAKS[kind]
    write_other(broken, folder / "dit", seed=2)
    spoil(broken)
    before, picture = live.card(), live.client.get("/generate", params=LINK).content
    failed = live.metric("diffusion_model_swaps_total", model="dit", outcome="failed")
    answer = put(live, f"staged/{kind}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "checkpoint"
    assert reason in answer.json()["detail"]
    assert live.card() == before
    assert live.client.get("/generate", params=LINK).content == picture
    assert live.metric("diffusion_model_swaps_total", model="dit", outcome="failed") == failed + 1


def test_a_swap_needs_memory_for_a_second_copy(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    before = live.card()
    monkeypatch.setattr(successor, "free_memory", lambda: 1000.0)
    answer = put(live, "staged/new")
    assert answer.status_code == 503
    assert "a second copy of the model needs" in answer.json()["detail"]
    assert int(answer.headers["retry-after"]) == 1
    assert live.card() == before
    monkeypatch.undo()
    assert put(live, "staged/new").status_code == 200


@pytest.mark.parametrize(
    ("model", "more", "status", "field"),
    [
        ("none", {}, 404, "model"),
        ("dit", {"json": {}}, 422, "checkpoint"),
        ("dit", {"json": {"checkpoint": 3}}, 422, "checkpoint"),
        ("dit", {"json": {"checkpoint": "dit", "more": 1}}, 422, "more"),
        ("dit", {"json": ["dit"]}, 422, "body"),
        ("dit", {"params": {"checkpoint": "dit"}}, 422, "checkpoint"),
    ],
)
def test_bad_input_names_the_field(
    live: Running, model: str, more: dict[str, Any], status: int, field: str
) -> None:
    answer = put(live, "dit", model, **more)
    assert answer.status_code == status
    assert answer.json()["errors"][0]["field"] == field
    assert answer.headers["content-type"] == "application/problem+json"


def test_swaps_at_once_end_in_one_answer_each(live: Running) -> None:
    before = live.card()["version"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: put(live, "dit"), range(24)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) <= {200, 409}
    assert live.card()["version"] == before + statuses.count(200)
    assert all(a.json()["type"] == "urn:problem:swap-under-way" for a in answers if a.status_code == 409)


def test_a_simulated_model_is_swapped_too(folder: Path) -> None:
    models = {"dit": simulated(folder / "dit", 1)}
    with running(create_app(settings(folder, models=models))) as live:
        assert put(live, "staged/new").json()["weights_sha256"] == sha256(folder / "staged/new")
        assert live.client.post("/generate?model=dit&class=cat").headers["x-simulated"] == "true"


def test_the_document_names_the_route_and_its_key(live: Running) -> None:
    operation = live.client.get("/openapi.json").json()["paths"]["/admin/models/{model}"]["put"]
    assert operation["security"] == [{"bearer": []}, {"header": []}]
    assert set(operation["responses"]) == {"200", "401", "404", "408", "409", "413", "415", "422", "503"}
