"""Compiles the kernels of networks in several processes at a start, while the engine warms up.

Triton compiles one kernel at a time, half a second each, and the shipped UNet has 155 of them for all row counts.
It keeps them on disk, so whatever a helper has compiled, the engine finds there. Helpers run plain steps of an
untrained network; they may fail without harm, and end with the engine.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from models.checkpoint import ModelConfig, build_model
from service.cgroup import MEMORY, ROOT, cores, free_memory
from service.engine.runner import ModelRunner

HELPERS = 4  # processes a model at most
CORES_OF_A_HELPER = 2
BYTES_OF_A_HELPER = 2 << 30  # of the host, an assumption: CUDA's context and torch's libraries
FREE_BYTES = 16 << 30  # of the device, from which helpers start: each takes half a gigabyte for a while
LONGEST_SECONDS = 60.0  # that the engine waits for helpers; one that hangs must not stop the start
LOOK_SECONDS = 0.05


class Helpers:
    """Processes that compile; they use the device as well, so what is timed beside them would look too slow."""

    def __init__(self) -> None:
        self._running: list[threading.Thread] = []

    def start(self, command: list[str]) -> None:
        quiet = subprocess.DEVNULL
        helper = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
        self._running.append(threading.Thread(target=helper.wait, daemon=True))  # else it stays a zombie
        self._running[-1].start()

    def wait(self, on_progress: Callable[[], None]) -> None:
        """Until all have ended; on_progress is called meanwhile."""
        end = time.monotonic() + LONGEST_SECONDS
        for waiter in self._running:
            while waiter.is_alive() and time.monotonic() < end:
                waiter.join(LOOK_SECONDS)
                on_progress()
        self._running.clear()  # a second model does not wait again for one that hangs


def compile_ahead(configs: Sequence[ModelConfig], dtype: torch.dtype, counts: list[int]) -> Helpers:
    """Start helpers for all networks and row counts, as many as there is room for; does not wait."""
    started = Helpers()
    if not configs or torch.cuda.mem_get_info()[0] < FREE_BYTES:
        return started
    helpers = min(HELPERS * len(configs), room_for_helpers())
    for first, config in enumerate(configs):
        for share in shares(counts, len(range(first, helpers, len(configs)))):
            command = [sys.executable, "-m", "service.engine.compiling", config.architecture]
            command += [json.dumps(config.arguments), str(dtype).removeprefix("torch."), "cuda", *map(str, share)]
            started.start(command)
    return started


def room_for_helpers(cgroup: Path = ROOT, machine: Path = MEMORY) -> int:
    """By the cores and the memory that this process may use: those of its container, where it has limits."""
    memory = free_memory(root=cgroup, machine=machine)
    return max(0, int(min(cores(cgroup) // CORES_OF_A_HELPER, memory / BYTES_OF_A_HELPER)))


def shares(counts: list[int], helpers: int) -> list[list[int]]:
    """Each helper's row counts, the largest first, because the engine begins there, too."""
    counts = sorted(counts, reverse=True)
    return [share for i in range(helpers) if (share := counts[i::helpers])]


def main(arguments: list[str]) -> None:
    """ARCHITECTURE ARGUMENTS_AS_JSON DTYPE DEVICE COUNT ..."""
    engine = os.getppid()
    architecture, sizes, dtype, device, *counts = arguments
    config = ModelConfig(architecture, json.loads(sizes))
    model = build_model(config).eval().requires_grad_(False)
    share = [int(count) for count in counts]
    runner = ModelRunner(model, config, torch.device(device), getattr(torch, dtype), max(share))
    for count in share:
        if os.getppid() != engine:
            return
        runner.execute(runner.rehearsal(count))


if __name__ == "__main__":
    main(sys.argv[1:])
