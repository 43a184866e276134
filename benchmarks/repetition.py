"""Measures what the deterministic mode costs: the same requests with and without it, in turns, on one engine.

    python -m benchmarks.repetition --checkpoint checkpoints/dit [--rows 8] [--repeats 5]

The mode pads each step to the row cap. So a single request pays for full steps, and many requests pay little.
The ratio is the median over the repeats. Run it on a machine without other load.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from models.checkpoint import load_checkpoint
from service.engine.core import EngineConfig, EngineCore
from service.engine.plan import compile_plan
from service.engine.request import Request
from service.engine.runner import ModelRunner
from service.registry import choose_device, choose_dtype
from service.wire.messages import SamplingParams

CONCURRENCY = (1, 2, 4, 8, 16)  # requests at once


def requests(runner: ModelRunner, count: int, deterministic: bool) -> list[Request]:
    """Requests of 10 to 40 steps; every other one has guidance."""
    made = []
    for index in range(count):
        scale, steps = (2.0, 1.0)[index % 2], (20, 10, 40, 30)[index % 4]
        params = SamplingParams(
            "model", index % 10, steps, "dpmpp_2m", scale, (0.0, 1.0), (index,), deterministic=deterministic
        )
        made.append(Request(f"{deterministic}-{index}", params, compile_plan(runner.config, params)))
    return made


def seconds(core: EngineCore, concurrent: list[Request]) -> float:
    """Seconds until the last request is done."""
    started = time.monotonic()
    for request in concurrent:
        core.add(request)
    while core.has_work:
        core.step()
    return time.monotonic() - started


def measure(
    runner: ModelRunner, rows: int, repeats: int, counts: tuple[int, ...] = CONCURRENCY
) -> dict[int, list[float]]:
    """Time with the mode over time without it, by number of requests at once.

    Raises:
        RuntimeError: the engine found that this machine does not repeat results bit by bit, so it has no such mode.
    """
    core = EngineCore({"model": runner}, EngineConfig(rows))
    core.warm_up("model")
    if not core.runners["model"].repeats_itself:
        raise RuntimeError("this machine does not repeat itself bit by bit: there is nothing to measure")
    ratios: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(repeats):
        for count in counts:
            without, deterministic = (seconds(core, requests(runner, count, mode)) for mode in (False, True))
            ratios[count].append(deterministic / without)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/dit"))
    parser.add_argument("--rows", type=int, default=8, help="row cap")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    model, config = load_checkpoint(arguments.checkpoint)
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    runner = ModelRunner(model, config, device, dtype, max_rows=arguments.rows)
    print(f"{arguments.checkpoint}, {device}, {dtype}, at most {arguments.rows} rows a step")
    print("| requests at once | time with deterministic over time without | least to most |\n|---|---|---|")
    for count, found in measure(runner, arguments.rows, arguments.repeats).items():
        print(f"| {count} | {np.median(found):.2f} | {min(found):.2f} to {max(found):.2f} |")


if __name__ == "__main__":
    main()
