"""The step as a CUDA graph per row bucket, with the host one step ahead of the device.

A step of few rows costs what its launches cost: about a hundred from Python, one when the device replays them by
itself. A graph is bound to its addresses and shapes, so each bucket has one that reads its block from a fixed
place, and smaller steps are padded to the next bucket.

What only a GPU can execute is CudaDevice. GraphRunner runs with any device that captures and fetches; the plain
ModelRunner is its reference.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from service.engine.request import ImageTask
from service.engine.runner import LaunchedStep, ModelRunner
from service.engine.step_block import BYTES_PER_ROW, StepBlock, pack

WARM_UP_RUNS = 2  # before a capture: kernels are compiled and libraries open their handles


class CudaDevice:
    """Captures graphs and moves bytes without making the host wait.

    Everything runs on the current stream of the engine's thread, so steps follow each other on the device in the
    order of their launches, those of different models, too.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._memory = torch.cuda.graph_pool_handle()  # one for all graphs: no two of them run at once
        # Graphs are captured on a stream of their own. One for all: cuBLAS keeps 32 MiB a stream on Hopper.
        self._side = torch.cuda.Stream(device)

    def host_buffer(self, size: int) -> Tensor:
        """Pinned, because only from there a copy is asynchronous."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def capture(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Returns a replay of step, and the tensor that each replay writes what step returned to."""
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            for _ in range(WARM_UP_RUNS):
                step()
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads do on the device meanwhile is theirs, and no reason to fail
        with torch.cuda.graph(graph, pool=self._memory, stream=self._side, capture_error_mode="thread_local"):
            output = step()
        torch.cuda.current_stream(self.device).wait_stream(self._side)
        return graph.replay, output

    def fetch(self, *tensors: Tensor) -> tuple[list[Tensor], Callable[[], None]]:
        """Start copies to pinned memory; they may be read after the returned wait()."""
        copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        arrived = torch.cuda.Event(blocking=True)  # sleep rather than spin: the event loop shares the CPU
        arrived.record()
        return copies, arrived.synchronize


class CapturedStep(NamedTuple):
    """The graph of one row bucket, with the places that it reads and writes."""

    replay: Callable[[], None]
    finite: Tensor
    block: StepBlock
    host_blocks: list[StepBlock]


class GraphRunner(ModelRunner):
    """A ModelRunner that replays captured steps.

    Args:
        graph_device: CudaDevice, or whatever stands in for it.
    """

    steps_ahead = 1

    def __init__(self, *args: Any, graph_device: CudaDevice):
        super().__init__(*args)
        self._graphs: dict[int, CapturedStep] = {}  # by row bucket
        self._graph_device = graph_device
        size = BYTES_PER_ROW * len(self.pool)
        self._buffer = torch.zeros(size, dtype=torch.uint8, device=self.device)
        # Two, because the copy out of the last step's buffer may still be under way.
        self._host_buffers = [graph_device.host_buffer(size) for _ in range(self.steps_ahead + 1)]
        self._turn = 0

    def runs(self, rows: int) -> bool:
        return rows <= max(self._graphs)

    def padded(self, rows: int) -> int:
        return min((bucket for bucket in self._graphs if bucket >= rows), default=rows)

    @torch.inference_mode()
    def prepare(self, rows: int) -> None:
        block, *host = (StepBlock(buffer, rows, rows) for buffer in (self._buffer, *self._host_buffers))
        self._send([], block, host)
        replay, finite = self._graph_device.capture(lambda: self.advance(block))
        self._graphs[rows] = CapturedStep(replay, finite, block, host)

    @torch.inference_mode()
    def launch(self, tasks: list[ImageTask]) -> LaunchedStep:
        step = self._graphs[self.step_rows(tasks)]
        self._send(tasks, step.block, step.host_blocks)
        step.replay()
        shown = sum(task.is_shown for task in tasks)
        block = step.block
        leaving = [step.finite, *([self.pool.read(block.shown[:shown], block.look[:shown])] if shown else [])]
        (flags, *pixels), wait = self._graph_device.fetch(*leaving)
        return LaunchedStep(tasks, flags, *pixels, wait=wait)

    def _send(self, tasks: list[ImageTask], block: StepBlock, host_blocks: list[StepBlock]) -> None:
        """One asynchronous copy of the step's block to its fixed place on the device."""
        self._turn = (self._turn + 1) % len(host_blocks)
        pack(host_blocks[self._turn], tasks, self.config.num_classes, self.pool.scratch_slot)
        block.bytes.copy_(host_blocks[self._turn].bytes, non_blocking=True)
