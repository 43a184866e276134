"""Times whole steps in this engine, in plain PyTorch and with torch.compile, beside their floor. Needs a GPU.

    python -m benchmarks.steps [--models dit unet] [--rows 1 8 64 256] [--compiled 1 8 64]

A step gathers its rows, runs the network and the sampler update. "ours" runs in the engine's own CUDA graph, and
"fused" launches the same kernels from Python. The same step in plain PyTorch runs from Python ("eager") and in a
graph, and both again with torch.compile. A time in a graph is that of the device. A time from Python is that of a
step when steps follow each other. The floor is the least time that the device allows.
"""

import argparse
import fcntl
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import gpu_report
from benchmarks.gpu.device import (
    DEVICE,
    DRY,
    DTYPE,
    FULL_SIZE,
    ceilings,
    graph_device,
    graph_runner,
    loaded,
    parse,
    plain_torch,
    wall_seconds,
)  # fmt: skip
from benchmarks.gpu.results import record_failures, record_result
from benchmarks.networks import SHIPPED
from models.checkpoint import ModelConfig, build_model
from service.engine.runner import preferred_layout
from training.info import flops_by_part

ROWS, COMPILED_ROWS = (1, 8, 16, 32, 64, 128, 256), (1, 8, 64)
STATE_BYTES = 16  # of an element of an image: latent and history in float32, read and written
Step = Callable[[], None]


def plain_step(model: nn.Module, config: ModelConfig, rows: int) -> Step:
    """A step in plain torch, without noise. It never reads a tensor on the host, so that it can be captured."""
    layout = preferred_layout(model, DEVICE)
    x, history = (torch.randn(rows + 1, *config.image_shape, device=DEVICE) for _ in range(2))
    x, history = (t.contiguous(memory_format=layout) for t in (x, history))
    slots, finite = torch.arange(rows, device=DEVICE), torch.zeros(rows, dtype=torch.bool, device=DEVICE)
    t, y = torch.full((rows,), 500.0, device=DEVICE), slots % config.num_classes
    others = (t, torch.ones_like(t)) if config.is_few_step else ()  # r and w, as the engine gives them
    numbers = torch.tensor([1.0, 0.0, 1.0, 0.9, 0.12, -0.02, 1.0], device=DEVICE).repeat(rows, 1)

    def step() -> None:
        _, p, q, a, b, c, clamp = numbers[:, :, None, None, None].unbind(1)
        latent, previous = x[slots], history[slots]
        output = model(latent.to(DTYPE, memory_format=layout), t, y, *others).float()
        denoised = p * latent + q * output
        denoised = torch.where(clamp > 0, denoised.clamp(-1, 1), denoised)
        updated = a * latent + b * denoised + c * previous
        finite[:] = (denoised.isfinite() & updated.isfinite()).flatten(1).all(dim=1)
        x[slots], history[slots] = updated, denoised

    return step


class Network:
    """A network whose steps are captured and compiled, so that they can be timed."""

    def __init__(self, name: str, rows: list[int], compiled_rows: list[int]):
        self.name, self.device = name, graph_device()
        self.runner = graph_runner(name, max(rows), self.device)
        self.model, self.config = self.runner.model, self.runner.config
        for count in sorted(rows, reverse=True):  # the largest first, as in the service
            with record_failures("steps", model=name, rows=count):
                self.runner.prepare(count)
        self.compiled: dict[int, tuple[Step, Step]] = {}  # from Python, and in a graph
        torch._dynamo.config.recompile_limit = 64  # every row count is a compilation of the same function
        for count in compiled_rows:
            with record_failures("compile", model=name, rows=count):
                self._compile(count)

    # not inference_mode, in which compiled code cannot write into its inputs
    @torch.no_grad()
    def _compile(self, rows: int) -> None:
        began = time.monotonic()
        with plain_torch():
            plain = plain_step(self.model, self.config, rows)
            step = torch.compile(plain, dynamic=False, backend="eager" if DRY else "inductor")
            self.compiled[rows] = step, self.device.capture(step)
        record_result("compile", model=self.name, rows=rows, seconds=round(time.monotonic() - began, 1))

    def measure(self, rows: int, flops: int, peaks: dict[str, float]) -> dict[str, Any]:
        """Microseconds a step by variant; flops: of one row, peaks: see ceilings."""
        weights = sum(p.nbytes for p in self.model.parameters())
        moved = weights + rows * math.prod(self.config.image_shape) * STATE_BYTES
        # a step needs its products at the highest rate, and its weights once and each image's state in and out
        found = {"floor": max(rows * flops / peaks["flops"], moved / peaks["bytes"])}
        with record_failures("steps", model=self.name, rows=rows), torch.inference_mode():
            graph = loaded(self.runner, rows)
            found["ours"] = self.device.seconds(graph.replay)
            found["fused"] = wall_seconds(lambda: self.runner.advance(graph.block, graph.output))
        with record_failures("steps", model=self.name, rows=rows), torch.no_grad(), plain_torch():
            step = plain_step(self.model, self.config, rows)
            found["eager"] = wall_seconds(step)
            found["eager_graph"] = self.device.seconds(self.device.capture(step))
            if rows in self.compiled:
                compiled, replay = self.compiled[rows]
                found["compiled"] = wall_seconds(compiled)
                found["compiled_graph"] = self.device.seconds(replay)
        return {f"{variant}_us": round(1e6 * seconds, 1) for variant, seconds in found.items()}


@contextmanager
def turn(path: Path | None) -> Iterator[None]:
    """Wait until the file exists and lock it, so that one process at a time runs the block; None: no wait."""
    while path and not path.exists():
        time.sleep(0.1)
    if path is None:
        yield
    else:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def measure(
    name: str, rows: list[int], compiled_rows: list[int], after: Path | None = None
) -> list[dict[str, Any]]:
    network = Network(name, rows, compiled_rows)
    with torch.device("meta"):
        flops = flops_by_part(build_model(network.config), network.config.image_shape).total()
    with turn(after):
        peaks = ceilings()
        return [record_result("steps", model=name, rows=n, **network.measure(n, flops, peaks)) for n in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=[*SHIPPED, *FULL_SIZE], default=[*SHIPPED, *FULL_SIZE])
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--compiled", nargs="*", type=int, default=COMPILED_ROWS, help="rows for torch.compile")
    parser.add_argument(
        "--after", type=Path, help="wait for this file before timing; one process at a time then runs"
    )
    given = parse(parser)
    found = []
    for name in given.models:
        found += measure(name, given.rows, given.compiled, given.after)
    print(gpu_report.steps(found))


if __name__ == "__main__":
    main()
