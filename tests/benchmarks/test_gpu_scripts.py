"""The scripts that run on a rented GPU: what they need, and what they do when a part fails."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks" / "gpu"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing() -> None:
    scripts = [str(path.relative_to(ROOT)) for path in FOLDER.glob("*.sh")]
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_copy_with_wheels_lacks_no_package() -> None:
    """Torch with its own needs is on every machine with a GPU; prepare.sh fetches or names all others."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[<>=;]", line)[0].strip() for line in needed} - {"torch", "triton", "numpy"}
    assert names - set((FOLDER / "prepare.sh").read_text().split()) == set()


def test_a_missing_package_ends_the_run_before_its_first_part(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['python_multipart'] = None\n")
    given = {"PATH": "/usr/bin:/bin", "OUT": str(tmp_path / "out"), "GPU_SCRATCH": str(tmp_path / "scratch")}
    done = subprocess.run(
        ["bash", "benchmarks/gpu/first.sh", "--dry"],
        cwd=ROOT,
        env=given | {"PYTHON": sys.executable, "PYTHONPATH": str(tmp_path), "TOTAL_SECONDS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (8, "")
    assert "python_multipart" in done.stderr


def run_parts(script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Lines of bash after setup.sh, with a python that knows every module."""
    (tmp_path / "python").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "python").chmod(0o755)
    given = {"PATH": "/usr/bin:/bin", "OUT": str(tmp_path / "out"), "GPU_SCRATCH": str(tmp_path / "scratch")}
    return subprocess.run(
        ["bash", "-uc", f"set -- --dry\n. benchmarks/gpu/setup.sh\n{script}"],
        cwd=ROOT,
        env=given | {"PYTHON": str(tmp_path / "python")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_part_that_fails_ends_no_other_and_the_whole_fails(tmp_path: Path) -> None:
    done = run_parts("part bad 9 sh -c 'echo why; exit 3'\npart good 9 echo \"{'a': 1}\"\nfinish", tmp_path)
    assert done.returncode == 1
    found = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(r["name"], r["exit"], r["last"]) for r in found] == [("bad", 3, "why"), ("good", 0, "a: 1")]
    assert "== bad: exit 3" in done.stdout
    assert (tmp_path / "out" / "logs" / "good.txt").read_text() == "{'a': 1}\n"


def test_a_run_without_failures_ends_well(tmp_path: Path) -> None:
    done = run_parts("part good 9 true\nfinish", tmp_path)
    assert done.returncode == 0, done.stderr
