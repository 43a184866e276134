"""A start is measured until its models are warm, and ends before the next one."""

import asyncio
from pathlib import Path

import pytest

from benchmarks import sizing


def test_a_start_is_measured(checkpoints: Path) -> None:
    start = asyncio.run(sizing.measure({"dit": checkpoints / "dit"}, threads=1, workers=1))
    assert start.seconds > 0
    assert start.mib > 50
    assert start.threads >= 3  # supervisor, engine, worker
    assert sizing.row("dit", [start, start]).startswith("| dit | ")


def test_a_folder_without_checkpoints_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["sizing", "--checkpoints", str(tmp_path)])
    with pytest.raises(SystemExit):
        sizing.main()
    assert "--checkpoints must hold a folder with a config.json" in capsys.readouterr().err
