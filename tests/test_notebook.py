"""docs/first_steps.ipynb: its code runs, and it is shipped with its pictures."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "first_steps.ipynb"


def code_cells() -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_every_cell_runs(tmp_path: Path) -> None:
    """In order, with two steps of training for each network."""
    lines = [line for cell in code_cells() for line in [*cell["source"], "\n"]]
    code = "".join(line for line in lines if not line.startswith("%"))
    short = code.replace("}, 1200)", "}, 2)").replace("}, 400)", "}, 2)")
    assert short.count("}, 2)") == 2
    (tmp_path / "first_steps.py").write_text(short)
    settings = {"TMPDIR": str(tmp_path), "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", tmp_path / "first_steps.py"]
    done = subprocess.run(command, env=os.environ | settings, cwd=NOTEBOOK.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_it_is_shipped_as_it_ran() -> None:
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 8
    assert NOTEBOOK.stat().st_size < 500_000
