"""What the processes of the service need together: memory and start-up time, by model.

    python -m benchmarks.sizing                      # the shipped checkpoints, together and each alone
    python -m benchmarks.sizing --starts 5 --threads 1    # medians of five starts

Starts `run.py serve` on the CPU, waits until it is warm, draws one image with each model, and reads the memory of
all its processes. Prints a table in Markdown.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks import process_tree

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 600.0  # a start that takes longer has failed


@dataclass(frozen=True, slots=True)
class Start:
    """What one start needed."""

    seconds: float  # from the command until the models are warm
    mib: float  # after one image of each model
    threads: int


@contextmanager
def serving(models: dict[str, Path], threads: int, workers: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and its address, as its own log tells it."""
    entries = json.dumps({name: {"checkpoint": str(folder)} for name, folder in models.items()})
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DIFFUSION_")}
    wanted = {"MODELS": entries, "THREADS": threads, "HTTP_WORKERS": workers, "DEVICE": "cpu", "LOG_FORMAT": "json"}
    environment = kept | {f"DIFFUSION_{name}": str(value) for name, value in wanted.items()}
    command = [sys.executable, "run.py", "serve", "--port", "0"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log)
        try:
            yield process, address(process, log)
        finally:
            process.terminate()
            process.wait()


def address(process: subprocess.Popen[bytes], log: Any) -> str:
    """Waits for the line that says where the service listens, which it writes once it is warm."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        log.seek(0)
        lines = [line for line in log.read().splitlines() if '"urls"' in line]
        if lines:
            return json.loads(lines[0])["urls"][0]
        time.sleep(0.05)
    log.seek(0)
    raise RuntimeError(f"the service did not start: {log.read()[-500:]}")


def measure(models: dict[str, Path], threads: int, workers: int) -> Start:
    started = time.monotonic()
    with serving(models, threads, workers) as (process, url):
        seconds = time.monotonic() - started
        for name in models:
            httpx.post(f"{url}/generate?model={name}&class=0", timeout=START_SECONDS).raise_for_status()
        return Start(seconds, process_tree.memory(process.pid), process_tree.status(process.pid, "Threads"))


def row(label: str, starts: list[Start]) -> str:
    """One line of the table; medians where there were several starts."""
    seconds, mib, threads = (
        median(getattr(start, name) for start in starts) for name in ("seconds", "mib", "threads")
    )
    return f"| {label} | {seconds:.0f} s | {mib:.0f} MiB | {threads:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, default=ROOT / "checkpoints")
    parser.add_argument("--starts", type=int, default=1, help="of each set of models (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the engine (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="HTTP processes (default: %(default)s)")
    arguments = parser.parse_args()
    found = {
        path.parent.name: path.parent.resolve() for path in sorted(arguments.checkpoints.glob("*/config.json"))
    }
    sets = [{name: folder} for name, folder in found.items()] + ([found] if len(found) > 1 else [])
    print("| models | start-up | memory | threads |\n|---|---|---|---|")
    for models in sets:
        starts = [measure(models, arguments.threads, arguments.workers) for _ in range(arguments.starts)]
        print(row(" + ".join(models), starts), flush=True)


if __name__ == "__main__":
    main()
