"""OpenVINO as this project takes it in: without its reports, and with one Core."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

WATCHED = """
import sys
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith("socket.") else None)
from models.graph import import_openvino
import_openvino().convert_model
print(sys.modules["openvino_telemetry"], seen)
"""


def test_openvino_reports_nothing_at_its_import(tmp_path: Path) -> None:
    """Without the block it makes a folder in the home and sends a report."""
    command = [sys.executable, "-c", WATCHED]
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("None []\n", "")
    assert list(tmp_path.iterdir()) == []


SIGNALLED = """
import os, signal, sys
from models.graph import core
from openvino import Model, opset13
seen = []
signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
x = opset13.parameter([1])
first, second = (core() for _ in range(2))
for each in (first, second):
    each.compile_model(Model([x], [x], ""), "CPU")
del each, first, second
os.kill(os.getpid(), signal.SIGTERM)
print(seen)
"""


def test_a_signal_is_survived_after_graphs_have_gone() -> None:
    """Two Cores of OpenVINO that went in the order in which they came left a stack for signals that was gone."""
    command = [sys.executable, "-c", SIGNALLED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[15]\n", 0)
