"""Compiles a network's kernels in several processes at a start, while the engine warms up.

Triton compiles one kernel at a time, half a second each, and the shipped UNet has about 100 of them for all row
counts. It keeps them on disk, so whatever a helper has compiled, the engine finds there. Helpers run plain steps of
an untrained network; they may fail without harm.
"""

import json
import os
import subprocess
import sys
import threading

import torch

from models.checkpoint import ModelConfig, build_model
from service.engine.runner import ModelRunner

HELPERS = 4  # processes a model
CORES_OF_A_HELPER = 2
FREE_BYTES = 16 << 30  # of the device, from which helpers start: each takes half a gigabyte for a while


def compile_ahead(config: ModelConfig, dtype: torch.dtype, counts: list[int]) -> None:
    """Start helpers for all row counts, if the machine has cores and memory for them; does not wait."""
    helpers = min(HELPERS, (os.cpu_count() or 1) // CORES_OF_A_HELPER)
    if helpers < 2 or torch.cuda.mem_get_info()[0] < FREE_BYTES:
        return
    for share in shares(counts, helpers):
        command = [sys.executable, "-m", "service.engine.compiling", config.architecture]
        command += [json.dumps(config.arguments), str(dtype).removeprefix("torch."), "cuda", *map(str, share)]
        quiet = subprocess.DEVNULL
        helper = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
        threading.Thread(target=helper.wait, daemon=True).start()  # else it stays a zombie


def shares(counts: list[int], helpers: int) -> list[list[int]]:
    """Each helper's row counts, the largest first, because the engine begins there, too."""
    counts = sorted(counts, reverse=True)
    return [share for i in range(helpers) if (share := counts[i::helpers])]


def main(arguments: list[str]) -> None:
    """ARCHITECTURE ARGUMENTS_AS_JSON DTYPE DEVICE COUNT ..."""
    architecture, sizes, dtype, device, *counts = arguments
    config = ModelConfig(architecture, json.loads(sizes))
    model = build_model(config).eval().requires_grad_(False)
    share = [int(count) for count in counts]
    runner = ModelRunner(model, config, torch.device(device), getattr(torch, dtype), max(share))
    for count in share:
        runner.execute(runner.rehearsal(count))


if __name__ == "__main__":
    main(sys.argv[1:])
