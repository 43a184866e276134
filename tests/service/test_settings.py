"""Settings from the environment: defaults, names, and errors in one line."""

import json
import os
import re
from pathlib import Path

import pytest

from models.files import default_checkpoints
from service.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DIFFUSION_")]:
        monkeypatch.delenv(name)


def test_an_empty_environment_gives_the_defaults() -> None:
    assert load_settings() == Settings()
    assert load_settings().checkpoints == default_checkpoints()


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_MAX_ROWS", "12")
    monkeypatch.setenv("DIFFUSION_MODELS", json.dumps({"mine": {"checkpoint": "somewhere", "weight": 2}}))
    settings = load_settings()
    assert settings.max_rows == 12
    assert settings.models["mine"].checkpoint == Path("somewhere")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_ROWS", "1"),
        ("MAX_ROWS", "many"),
        ("DEVICE", "tpu"),
        ("DTYPE", "int4"),
        ("DRAIN_SECONDS", "nan"),
        ("MAX_STEPS", "5000"),
        ("MODELS", "{"),
        ("MODELS", '{"a": {}}'),
        ("MODELS", '{"a": {"checkpoint": "x", "config": {}}}'),
        ("MODELS", '{"a": {"checkpoint": "x", "colour": "red"}}'),
        ("MODELS", '{"a": {"checkpoint": "x", "weight": 0}}'),
    ],
)
def test_a_broken_setting_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"DIFFUSION_{name}", value)
    with pytest.raises(SettingsError, match=f"(?i){name}") as error:
        load_settings()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "MODELS",
            '{"Cats": {"chekpoint": "x"}}',
            "DIFFUSION_MODELS.Cats.chekpoint: unknown field: use one of architecture,",
        ),
        (
            "MODELS",
            '{"a": {"simulate": {"t0_ms": 1, "t1_ms": 1, "t": 1}}}',
            "DIFFUSION_MODELS.a.simulate.t: unknown field: use one of t0_ms, t1_ms",
        ),
        ("API_KEYS", "short", "at least 16 characters, not 5"),
    ],
)
def test_a_broken_setting_says_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"DIFFUSION_{name}", value)
    with pytest.raises(SettingsError, match=re.escape(said)):
        load_settings()


def test_a_misspelt_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_MAX_ROW", "8")
    with pytest.raises(SettingsError, match="DIFFUSION_MAX_ROW: .*DIFFUSION_MAX_ROWS"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("LOG_LEVEL", "INFO", "info"),
        ("LOG_FORMAT", "Json", "json"),
        ("DEVICE", "CPU", "cpu"),
        ("DTYPE", "BFloat16 ", "bfloat16"),
        ("DTYPE", " INT8 ", "int8"),
    ],
)
def test_choices_are_taken_in_any_case(monkeypatch: pytest.MonkeyPatch, name: str, value: str, read: str) -> None:
    monkeypatch.setenv(f"DIFFUSION_{name}", value)
    assert getattr(load_settings(), name.lower()) == read


@pytest.mark.parametrize("name", sorted(Settings.model_fields.keys() - {"api_keys"}))
def test_an_empty_value_is_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Compose writes one for ${X:-}. Empty API keys are refused: see test_keys.py."""
    monkeypatch.setenv(f"DIFFUSION_{name.upper()}", "")
    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "tcp://10.0.0.1:8000"),
        ("SERVICE_HOST", "10.0.0.1"),
        ("SERVICE_PORT", "8000"),
        ("SERVICE_PORT_HTTP", "8000"),
        ("PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("PORT_8000_TCP_ADDR", "10.0.0.1"),
        (
            "METRICS_PORT",
            "tcp://10.0.0.1:9090",
        ),  # of a Service diffusion-metrics; also a setting
    ],
)
def test_variables_of_a_kubernetes_service_are_explained(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"DIFFUSION_{name}", value)
    said = f"DIFFUSION_{name}: looks like a Kubernetes Service link: .*Links: false"
    with pytest.raises(SettingsError, match=said):
        load_settings()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().__setattr__("max_rows", 3)
