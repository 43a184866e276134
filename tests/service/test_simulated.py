"""A simulated model in the real service: answers, /models and metrics all say so."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.local import create_app
from service.settings import ModelEntry, Settings, SettingsError, load_settings
from tests.service.conftest import Running, running
from tests.service.networks import simulated


@pytest.fixture(scope="module")
def both(checkpoints: Path) -> Iterator[Running]:
    folder = checkpoints / "dit"
    models = {"fast": simulated(folder, 0.2, 0.01), "real": ModelEntry(checkpoint=folder)}
    with running(create_app(Settings(models=models, device="cpu", max_rows=8))) as server:
        yield server


def test_answers_say_so(both: Running) -> None:
    for model, header in (("fast", "true"), ("real", None)):
        answer = both.client.post("/generate", params={"model": model, "class": 1, "steps": 3})
        assert answer.status_code == 200
        assert answer.headers.get("x-simulated") == header


def test_models_and_metrics_say_so(both: Running) -> None:
    devices = {model["name"]: model["device"] for model in both.client.get("/models").json()["models"]}
    assert devices == {"fast": "simulated", "real": "cpu"}
    assert both.metric("diffusion_model_info", model="fast", device="simulated") == 1
    assert both.metric("diffusion_model_info", model="real", device="cpu") == 1


def test_the_checkpoint_still_names_classes_and_shape(both: Running) -> None:
    fast, real = both.client.get("/models").json()["models"]
    for name in ("class_names", "image_shape", "samplers", "defaults", "weights_sha256"):
        assert fast[name] == real[name]
    assert (fast["parameters"], fast["dtype"]) == (0, "none")


@pytest.mark.parametrize(
    ("simulate", "reason"),
    [
        ('{"t0_ms": -1, "t1_ms": 1}', "greater than or equal to 0"),
        ('{"t0_ms": 0, "t1_ms": 0}', "must take time"),
        ('{"t0_ms": 1}', "Field required"),
        ('{"t0_ms": 1, "t1_ms": 1, "rows": 3}', "simulate.rows: unknown field: use one of t0_ms, t1_ms"),
    ],
)
def test_a_wrong_cost_is_refused(monkeypatch: pytest.MonkeyPatch, simulate: str, reason: str) -> None:
    monkeypatch.setenv("DIFFUSION_MODELS", f'{{"a": {{"checkpoint": "x", "simulate": {simulate}}}}}')
    with pytest.raises(SettingsError, match=reason):
        load_settings()
