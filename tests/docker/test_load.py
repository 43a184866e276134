"""The locust profile that machines run, against a real server: statistics by model, an exit code that means it."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.service.networks import Fragile, entry
from tests.service.process import ROOT, serving

# Looked for, not imported: locust replaces the sockets and threads of the process that imports it.
pytestmark = pytest.mark.skipif(not importlib.util.find_spec("locust"), reason="needs locust")

LOCUST = [sys.executable, "-m", "locust", "--config", "docker/load/ci.conf", "-f", "docker/load/locustfile.py"]


def run(
    url: str, folder: Path, scenario: str, seconds: int = 3
) -> tuple[subprocess.CompletedProcess[str], dict[str, dict[str, Any]]]:
    """What locust said, and its statistics by name."""
    command = [*LOCUST, "--host", url, "-t", f"{seconds}s", "--csv", str(folder / "run")]
    command += ["--csv-full-history", scenario]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    with (folder / "run_stats.csv").open(newline="") as file:
        return ended, {row["Name"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("scenario", ["Mixed", "Saturation", "Soak"])
def test_scenarios_have_statistics_by_model(checkpoints: Path, tmp_path: Path, scenario: str) -> None:
    cost = {"simulate": {"t0_ms": 1, "t1_ms": 0.01}}
    models = json.dumps({name: {"checkpoint": str(checkpoints / "dit")} | cost for name in ("dit", "unet")})
    with (tmp_path / "log").open("w+") as log, serving(checkpoints, log, models=models, http_workers=2) as (_, url):
        for seconds in (3, 20):  # on a busy machine nothing may have ended after three
            ended, stats = run(url, tmp_path, scenario, seconds)
            if {"/generate dit", "/generate unet"} <= set(stats):
                break
    assert ended.returncode == 0, ended.stderr
    for name in ("/generate dit", "/generate unet"):
        assert int(stats[name]["Request Count"]) > 0
    assert int(stats["Aggregated"]["Failure Count"]) == 0
    drawing = [sys.executable, "docker/load/plot.py", tmp_path / "run_stats_history.csv", tmp_path / "plot.png"]
    subprocess.run(drawing, cwd=ROOT, check=True, timeout=60)
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_failing_model_is_told_by_the_exit_code(tmp_path: Path) -> None:
    models = json.dumps({"dit": entry(Fragile).model_dump(exclude_none=True)})
    with (tmp_path / "log").open("w+") as log, serving(tmp_path, log, models=models) as (_, url):
        ended, stats = run(url, tmp_path, "Saturation")
    assert ended.returncode == 1
    assert 0 < int(stats["/generate dit"]["Failure Count"]) < int(stats["/generate dit"]["Request Count"])
    assert "the model raised RuntimeError" in ended.stdout + ended.stderr
