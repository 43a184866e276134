"""The GPU, or a CPU in its place for a dry run: graphs, clocks, networks and steps that are ready to run."""

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
CALLS = 20  # of a kernel in one graph, whose launch then takes less than its kernels


class DryDevice(CudaDevice):
    """Captures by keeping the function, and copies at once. Its times are no measurements."""

    def __init__(self) -> None:
        pass

    def host_buffer(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        step()
        return step

    def fetch(self, source: Tensor, target: Tensor) -> Event:
        target.copy_(source)
        return COMPLETED

    def seconds(self, replay: Callable[[], None]) -> float:
        return 1e-3


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Ends the program where there is no GPU, but for --dry."""
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


def wall_seconds(run: Callable[[], object], repeats: int = 30) -> float:
    """Host and device together: calls one after the other and one wait at the end; the best of three rounds."""
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


def kernel_seconds(device: CudaDevice, run: Callable[[], object]) -> float:
    """Seconds of one call on the device, in a graph of several."""
    calls = 1 if DRY else CALLS

    def several() -> None:
        for _ in range(calls):
            run()

    return device.seconds(device.capture(several)) / calls


def ceilings() -> dict[str, float]:
    """Bytes a second of a copy of 1 GiB (read and written), FLOP/s of a product of 8,192 cubed."""
    size, side = (2**20, 256) if DRY else (2**29, 8192)
    a, b = (torch.empty(size, dtype=DTYPE, device=DEVICE).normal_() for _ in range(2))
    x, y = (torch.randn(side, side, dtype=DTYPE, device=DEVICE) for _ in range(2))
    device = graph_device()
    copy, product = device.capture(lambda: void(b.copy_(a))), device.capture(lambda: void(x @ y))
    return {"bytes": 2 * a.nbytes / device.seconds(copy), "flops": 2 * side**3 / device.seconds(product)}


def void(value: object) -> None:
    """A step returns nothing."""


def model_of(name: str) -> tuple[nn.Module, ModelConfig]:
    """One of SHIPPED or FULL_SIZE, on the CPU in float32."""
    return shipped_network(name) if name in SHIPPED else full_size_network(FULL_SIZE[name])


def graph_runner(name: str, rows: int, device: CudaDevice, dtype: torch.dtype = DTYPE) -> GraphRunner:
    """Nothing is captured yet."""
    return GraphRunner(*model_of(name), DEVICE, dtype, rows, graph_device=device)


def tasks_for(config: ModelConfig, rows: int, step: int = 5) -> list[ImageTask]:
    """So many unguided images of ten steps, before that step."""
    params = SamplingParams("", 3, 10, "dpmpp_2m", 1.0, (0.0, 1.0), tuple(range(rows)))
    tasks = Request("", params, compile_plan(config, params)).tasks
    for slot, task in enumerate(tasks):
        task.slot, task.step = slot, step
    return tasks


@torch.inference_mode()
def loaded(runner: GraphRunner, rows: int) -> CapturedStep:
    """The graph of a bucket with real images in its block.

    All buckets share one block: a graph that is replayed over another bucket's reads slots that do not exist.
    """
    step = runner._graphs[rows]
    runner._send(runner.table.look_up(tasks_for(runner.config, rows)), step)
    synchronize()
    return step


@contextmanager
def plain_torch() -> Iterator[None]:
    """Every operation runs its reference in PyTorch, as on a CPU."""
    before = set(TRITON_DEVICES)
    TRITON_DEVICES.clear()
    try:
        yield
    finally:
        TRITON_DEVICES.update(before)
