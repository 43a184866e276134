"""The step as a CUDA graph per row bucket, with the host one step ahead of the device.

A step of few rows costs what its launches cost: about a hundred from Python, one when the device replays them by
itself. A graph is bound to its addresses and shapes, so each bucket has one that reads its block from a fixed
place, and smaller steps are padded to the next bucket.

What only a GPU can execute is CudaDevice. GraphRunner runs with any device that captures and fetches; the plain
ModelRunner is its reference.
"""

from collections.abc import Callable
from typing import Any

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

    def host_buffer(self, size: int) -> Tensor:
        """Pinned, because only from there a copy is asynchronous."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def capture(self, step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Returns a replay of step, and the tensor that each replay writes what step returned to."""
        side = torch.cuda.Stream(self.device)  # a graph is captured on a stream of its own, and warmed up there
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                step()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads do on the device meanwhile is theirs, and no reason to fail
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            output = step()
        return graph.replay, output

    def fetch(self, *tensors: Tensor) -> tuple[list[Tensor], Callable[[], None]]:
        """Start copies to pinned memory; they may be read after the returned wait()."""
        copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        arrived = torch.cuda.Event(blocking=True)  # sleep rather than spin: the event loop shares the CPU
        arrived.record()
        return copies, arrived.synchronize


class GraphRunner(ModelRunner):
    """A ModelRunner that replays captured steps.

    Args:
        graph_device: CudaDevice, or whatever stands in for it.
    """

    steps_ahead = 1

    def __init__(self, *args: Any, graph_device: CudaDevice):
        super().__init__(*args)
        self._graphs: dict[int, tuple[Callable[[], None], Tensor]] = {}  # replay and finite flags by row bucket
        self._graph_device = graph_device
        size = BYTES_PER_ROW * len(self.pool)
        self._block = torch.zeros(size, dtype=torch.uint8, device=self.device)
        # Two, because the copy out of the last step's buffer may still be under way.
        self._host_blocks = [graph_device.host_buffer(size) for _ in range(self.steps_ahead + 1)]

    def padded(self, rows: int) -> int:
        return min((bucket for bucket in self._graphs if bucket >= rows), default=rows)

    @torch.inference_mode()
    def prepare(self, rows: int) -> None:
        self._send([], rows)
        block = StepBlock(self._block, rows, rows)
        self._graphs[rows] = self._graph_device.capture(lambda: self.advance(block))

    @torch.inference_mode()
    def launch(self, tasks: list[ImageTask]) -> LaunchedStep:
        bucket = self.padded(sum(task.rows for task in tasks))
        block = self._send(tasks, bucket)
        replay, finite = self._graphs[bucket]
        replay()
        finished = sum(task.is_last_step for task in tasks)
        (flags, pixels), wait = self._graph_device.fetch(finite, self.pool.read(block.finished[:finished]))
        return LaunchedStep(tasks, flags, pixels, wait)

    def _send(self, tasks: list[ImageTask], bucket: int) -> StepBlock:
        """One asynchronous copy of the step's block to its fixed place on the device."""
        self._host_blocks.reverse()
        host = StepBlock(self._host_blocks[0], bucket, bucket)
        pack(host, tasks, self.config.num_classes, self.pool.scratch_slot)
        block = StepBlock(self._block, bucket, bucket)
        block.bytes.copy_(host.bytes, non_blocking=True)
        return block
