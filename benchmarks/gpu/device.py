"""What the measurements of a GPU share: timers, CUDA graphs and networks. A CPU takes its place in a dry run."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.networks import SHIPPED, full_size_network, shipped_network
from kernels.backend import TRITON_DEVICES
from models.checkpoint import ModelConfig
from service.engine.graphs import CapturedStep, CudaDevice, GraphRunner
from service.engine.launched import COMPLETED, Event
from service.engine.plan import compile_plan
from service.engine.request import ImageTask, Request
from service.wire.messages import SamplingParams

DRY = not torch.cuda.is_available()
DEVICE = torch.device("cpu" if DRY else "cuda")
DTYPE = torch.bfloat16
FULL_SIZE = {"dit-full": "dit", "unet-full": "unet"}
CALLS = 20  # of a kernel in one graph, so that launching the graph takes less time than its kernels


class DryDevice(CudaDevice):
    """The stand-in on a CPU: capture keeps the function, fetch copies at once, and seconds measures nothing."""

    def __init__(self) -> None:
        pass

    def host_buffer(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def capture(self, step: Callable[[], None], *, has_run: bool = False) -> Callable[[], None]:
        step()
        return step

    def fetch(self, source: Tensor, target: Tensor) -> Event:
        target.copy_(source)
        return COMPLETED

    def seconds(self, replay: Callable[[], None]) -> float:
        return 1e-3


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add --dry and parse the command line. Without a GPU and --dry, say so and end the program."""
    parser.add_argument("--dry", action="store_true", help="on a CPU, small, to see whether it runs")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    given = parser.parse_args()
    if DRY and not given.dry:
        print("torch finds no CUDA device: nothing was measured (--dry tries the code without one)")
        sys.exit(0)
    torch.manual_seed(0)
    return given


def graph_device() -> CudaDevice:
    return DryDevice() if DRY else CudaDevice(DEVICE)


def synchronize() -> None:
    if not DRY:
        torch.cuda.synchronize()


def free_gib() -> float:
    """Of the device, by all processes together."""
    return 0.0 if DRY else round(torch.cuda.mem_get_info()[0] / 2**30, 2)


def graph_pool_mib(device: CudaDevice) -> float:
    """What all graphs of the device hold for the tensors of their steps."""
    if DRY:
        return 0.0
    segments = torch.cuda.memory_snapshot()
    own = (s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == tuple(device._memory))
    return round(sum(own) / 2**20, 1)


def wall_seconds(run: Callable[[], object], repeats: int = 30) -> float:
    """Seconds of a call on host and device: calls follow each other, then one wait; the best of three rounds."""
    rounds, repeats = (1, 1) if DRY else (3, repeats)
    run()
    synchronize()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        synchronize()
        times.append((time.perf_counter() - started) / repeats)
    return min(times)


def kernel_seconds(device: CudaDevice, *runs: Callable[[], object]) -> float:
    """Seconds of one call on the device, from a CUDA graph of CALLS calls that take turns."""
    calls = len(runs) if DRY else max(CALLS, len(runs))

    def several() -> None:
        for call in range(calls):
            runs[call % len(runs)]()

    return device.seconds(device.capture(several)) / calls


def ceilings() -> dict[str, float]:
    """Highest rates: bytes a second of a copy (1 GiB, read and written), FLOP/s of a product of 8,192 cubed."""
    size, side = (2**20, 256) if DRY else (2**29, 8192)
    a, b = (torch.empty(size, dtype=DTYPE, device=DEVICE).normal_() for _ in range(2))
    x, y = (torch.randn(side, side, dtype=DTYPE, device=DEVICE) for _ in range(2))
    device = graph_device()
    copy, product = device.capture(lambda: discard(b.copy_(a))), device.capture(lambda: discard(x @ y))
    return {"bytes": 2 * a.nbytes / device.seconds(copy), "flops": 2 * side**3 / device.seconds(product)}


def discard(value: object) -> None:
    """Make an expression a step, which returns nothing."""


def model_of(name: str) -> tuple[nn.Module, ModelConfig]:
    """One of SHIPPED or FULL_SIZE, on the CPU in float32."""
    return shipped_network(name) if name in SHIPPED else full_size_network(FULL_SIZE[name])


def graph_runner(name: str, rows: int, device: CudaDevice, dtype: torch.dtype = DTYPE) -> GraphRunner:
    """A runner for one of SHIPPED or FULL_SIZE, which has not captured any graph yet."""
    return GraphRunner(*model_of(name), DEVICE, dtype, rows, graph_device=device)


def tasks_for(config: ModelConfig, rows: int, step: int = 5) -> list[ImageTask]:
    """`rows` unguided images of ten steps, each about to take the given step."""
    params = SamplingParams("", 3, 10, "dpmpp_2m", 1.0, (0.0, 1.0), tuple(range(rows)))
    tasks = Request("", params, compile_plan(config, params)).tasks
    for slot, task in enumerate(tasks):
        task.slot, task.step = slot, step
    return tasks


@torch.inference_mode()
def loaded(runner: GraphRunner, rows: int) -> CapturedStep:
    """The graph of a bucket, ready to be replayed: its step block holds real images.

    All buckets share one block. A graph that is replayed with the block of a larger bucket would read slots that do
    not exist.
    """
    step = runner._graphs[rows]
    runner._send(runner.table.look_up(tasks_for(runner.config, rows)), step)
    synchronize()
    return step


@contextmanager
def plain_torch() -> Iterator[None]:
    """Within the block, every operation runs its reference in PyTorch, as on a CPU."""
    before = set(TRITON_DEVICES)
    TRITON_DEVICES.clear()
    try:
        yield
    finally:
        TRITON_DEVICES.update(before)
