"""How much memory the service needs, and how long it takes to start, by model.

    python -m benchmarks.sizing                      # the shipped checkpoints, together and each alone
    python -m benchmarks.sizing --starts 5 --threads 1    # medians of five starts

Starts `run.py serve` on the CPU, waits until it is warm, draws one image with each model, and reads the memory of
all its processes. Prints a table in Markdown.
"""

import argparse
import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import ROOT, process_tree
from benchmarks.client import serving


@dataclass(frozen=True, slots=True)
class Start:
    """What one start needed."""

    seconds: float  # from the command until the models are warm
    mib: float  # after one image of each model
    threads: int


async def measure(models: dict[str, Path], threads: int, workers: int) -> Start:
    """Start the service once with the checkpoints in these folders, by model."""
    entries = json.dumps({name: {"checkpoint": str(folder)} for name, folder in models.items()})
    settings = {
        "models": entries,
        "threads": threads,
        "http_workers": workers,
        "device": "cpu",
        "log_level": "error",
    }
    started = time.monotonic()
    async with serving(**settings) as server:
        seconds = time.monotonic() - started
        for name in models:
            query = {"model": name, "class": "0"}
            async with server.session.post("/generate", params=query, raise_for_status=True) as answer:
                await answer.read()
        return Start(seconds, process_tree.memory_mib(server.process.pid), server.threads())


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
    if not found or arguments.starts < 1:
        parser.error("--checkpoints must hold a folder with a config.json, and --starts must be at least 1")
    sets = [{name: folder} for name, folder in found.items()] + ([found] if len(found) > 1 else [])
    print("| models | start-up | memory | threads |\n|---|---|---|---|")
    for models in sets:
        starts = [
            asyncio.run(measure(models, arguments.threads, arguments.workers)) for _ in range(arguments.starts)
        ]
        print(row(" + ".join(models), starts), flush=True)


if __name__ == "__main__":
    main()
