"""Swaps over real sockets with two workers: no request fails, and each image is that of exactly one checkpoint."""

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import httpx
import numpy as np
import pytest

import stepwise
from service.settings import ModelEntry
from tests.checkpoints import CLASS_NAMES, TINY, write_checkpoint
from tests.service.networks import Held
from tests.service.pictures import difference, pixels, recipe
from tests.service.process import SHORT, Processes, two_workers
from tests.service.test_admin import ADMIN, HEADERS, sha256, write_other
from tests.waiting import wait_until

SWAPS = 20
FIELDS = ("weights_sha256", "class", "seed", "steps", "sampler", "guidance")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "checkpoints"
    write_checkpoint(root / "dit", "dit")
    write_other(root / "staged/new", root / "dit")
    return root


def put(url: str, checkpoint: str = "staged/new") -> httpx.Response:
    body = {"checkpoint": checkpoint}
    return httpx.put(f"{url}/admin/models/dit", json=body, headers=HEADERS, timeout=60)


class Crowd:
    """Clients that ask until they are told to end; every third request is for a picture that can be cached."""

    def __init__(self, url: str):
        self.url, self.ended = url, False
        self.answers: list[httpx.Response] = []

    def ask(self, number: int) -> None:
        rng = random.Random(number)
        with httpx.Client(base_url=self.url, timeout=60) as session:
            while not self.ended:
                query = {"model": "dit", "class": rng.choice(CLASS_NAMES[:2]), "format": "png"}
                query |= {"steps": rng.choice([1, 3, 10]), "seed": rng.randrange(3)}
                if rng.random() < 1 / 3:
                    self.answers.append(session.get("/generate", params=query | {"deterministic": "true"}))
                else:
                    more = {"guidance": rng.choice([1, 1.5]), "sampler": rng.choice(["ddim", "dpmpp_2m_sde"])}
                    self.answers.append(session.post("/generate", params=query | more))


def test_swaps_under_load_fail_no_request_and_mix_no_weights(folder: Path, tmp_path: Path) -> None:
    entries = {"dit": ModelEntry(checkpoint=folder / "dit")}
    places = {sha256(folder / name): folder / name for name in ("dit", "staged/new")}
    with two_workers(folder, tmp_path, models=entries, admin_key=ADMIN) as service, ThreadPoolExecutor(4) as pool:
        sessions, crowd = list(service.ask_each_worker().values()), Crowd(service.url)
        clients = [pool.submit(crowd.ask, number) for number in range(4)]
        try:
            for number in range(SWAPS):
                name = ("staged/new", "dit")[number % 2]
                answer = put(service.url, name)
                assert (answer.status_code, answer.json().get("version")) == (200, number + 2), answer.text
                for session in sessions:  # the answer comes when every worker knows
                    facts = recipe(session.post("/generate", params=SHORT).content)
                    assert facts["weights_sha256"] == sha256(folder / name)
        finally:
            crowd.ended = True
        for client in clients:
            client.result()
        assert service.metric("diffusion_model_swaps_total", outcome="ok") == SWAPS
    assert {answer.status_code for answer in crowd.answers} == {200}
    models = {hash: stepwise.load(str(place), device="cpu") for hash, place in places.items()}

    @cache
    def alone(weights: str, label: str, seed: str, steps: str, sampler: str, guidance: str) -> np.ndarray:
        """By the plain loop."""
        fields = {"seed": int(seed), "steps": int(steps), "sampler": sampler, "guidance": float(guidance)}
        (image,) = models[weights].sample(label, **fields)
        return np.array(image)

    tags: dict[str, str] = {}
    for answer in crowd.answers:
        facts = recipe(answer.content)
        assert difference(pixels(answer), alone(*(facts[name] for name in FIELDS))) <= 1, facts
        if tag := answer.headers.get("etag"):
            assert tags.setdefault(tag, facts["weights_sha256"]) == facts["weights_sha256"]
    assert len({recipe(answer.content)["weights_sha256"] for answer in crowd.answers}) == 2
    assert tags


@contextmanager
def held(folder: Path, tmp_path: Path) -> Iterator[Processes]:
    """A service in which a swap to `staged/held` waits for the file `closed` to go."""
    sizes = TINY["dit"] | {"num_classes": 3, "folder": str(tmp_path)}
    entry = {"architecture": f"{Held.__module__}:{Held.__name__}", "checkpoint": str(folder / "held")}
    write_checkpoint(folder / "held", "dit")
    for place in (folder / "held", folder / "staged/held"):
        shutil.copytree(folder / "dit", place, dirs_exist_ok=True)
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(config | {"arguments": sizes}))
    with two_workers(folder, tmp_path, models={"dit": entry}, admin_key=ADMIN) as service:
        (tmp_path / "closed").touch()
        try:
            yield service
        finally:
            (tmp_path / "closed").unlink(missing_ok=True)


def test_a_drain_refuses_the_swap_and_answers_everybody(folder: Path, tmp_path: Path) -> None:
    with held(folder, tmp_path) as service, ThreadPoolExecutor(2) as pool:
        swap = pool.submit(put, service.url, "staged/held")
        wait_until((tmp_path / "waits").exists)
        asked = pool.submit(service.ask, steps=100)
        wait_until(lambda: service.metric("diffusion_running_slots") == 1 or asked.done())
        service.supervisor.send_signal(signal.SIGTERM)
        assert swap.result().status_code == 503
        assert "shutting down" in swap.result().json()["detail"]
        assert asked.result().status_code == 200
        assert service.supervisor.wait(timeout=60) == 0


def test_a_swap_goes_on_when_the_worker_that_was_asked_dies(folder: Path, tmp_path: Path) -> None:
    with held(folder, tmp_path) as service, ThreadPoolExecutor(1) as pool:
        (first, one), (_, other) = service.ask_each_worker().items()
        body = {"checkpoint": "staged/held"}
        swap = pool.submit(one.put, "/admin/models/dit", json=body, headers=HEADERS)
        wait_until((tmp_path / "waits").exists)
        os.kill(first, signal.SIGKILL)
        assert isinstance(swap.exception(), httpx.TransportError)
        assert other.post("/generate", params=SHORT).status_code == 200
        (tmp_path / "closed").unlink()
        wait_until(lambda: other.get("/models").json()["models"][0]["version"] == 2)
        wait_until(lambda: "starting another one" in service.log)
        wait_until(lambda: len(service.workers()) == 2)
        for session in service.ask_each_worker().values():
            assert session.get("/models").json()["models"][0]["version"] == 2
            assert session.post("/generate", params=SHORT).status_code == 200


def test_a_worker_that_starts_late_knows_the_models_of_the_start(folder: Path, tmp_path: Path) -> None:
    """Though there is another folder by then. Else it would count in other places of the board than the rest."""
    with two_workers(folder, tmp_path, models="", admin_key=ADMIN) as service:
        first, *_ = service.ask_each_worker()
        shutil.copytree(folder / "staged/new", folder / "another")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: "starting another one" in service.log)
        wait_until(lambda: len(service.workers()) == 2)
        before = service.metric("diffusion_requests_total", outcome="ok")
        sessions = service.ask_each_worker().values()
        for session in sessions:
            assert [model["name"] for model in session.get("/models").json()["models"]] == ["dit"]
            assert session.post("/generate", params=SHORT).status_code == 200
        for session in sessions:
            text = session.get("/metrics").text
            assert f'diffusion_requests_total{{model="dit",outcome="ok"}} {before + 2:.1f}' in text
            assert "another" not in text
