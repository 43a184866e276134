"""Fixtures of dry runs."""

from pathlib import Path

import pytest


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results of a benchmark on a GPU go, which runs dry."""
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["program", "--dry"])
    return tmp_path / "results.jsonl"
