import json
import os
from pathlib import Path

import pytest

from models.checkpoint import default_checkpoints
from service.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DIFFUSION_")]:
        monkeypatch.delenv(name)


def test_defaults() -> None:
    assert load_settings() == Settings()
    assert load_settings().checkpoints == default_checkpoints()


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
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
        ("DTYPE", "int8"),
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


def test_a_misspelt_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_MAX_ROW", "8")
    with pytest.raises(SettingsError, match="DIFFUSION_MAX_ROW: .*DIFFUSION_MAX_ROWS"):
        load_settings()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().__setattr__("max_rows", 3)
