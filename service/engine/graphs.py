"""The step as a CUDA graph per row bucket, with the host one step ahead of the device.

The launches of a step of few rows take longer than its computations: Python makes about a hundred, a replay is one.
A graph is bound to its addresses and shapes, so each bucket has one that reads its block from a fixed place, and
smaller steps are padded to the next bucket.

What only a GPU can execute is CudaDevice. GraphRunner runs with any device that captures and fetches; the plain
ModelRunner is its reference.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.checkpoint import ModelConfig
from service.engine.launched import Event, LaunchedStep
from service.engine.request import ImageTask
from service.engine.runner import ModelRunner
from service.engine.slot_table import TaskArrays
from service.engine.step_block import StepBlock, StepOutput, block_bytes, output_bytes, pack
from service.engine.trajectory import copy_states

WARM_UP_RUNS = 2  # before a capture: kernels are compiled and libraries open their handles
TIMED_ROUNDS, TIMED_REPLAYS = 10, 10


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

    def capture(self, step: Callable[[], None], *, has_run: bool = False) -> Callable[[], None]:
        """Returns a replay of step.

        Between the steps of a serving engine only a step that has_run is captured, by a runner of the same network.
        That needs no warm-up, and neither waits for the device nor frees memory, as torch.cuda.graph does.
        """
        if not has_run:
            self._warm_up(step)
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        self._side.wait_stream(current)
        try:
            with torch.cuda.stream(self._side):
                # thread_local: what other threads do on the device meanwhile is theirs, and no reason to fail
                graph.capture_begin(self._memory, capture_error_mode="thread_local")
                try:
                    step()
                finally:
                    graph.capture_end()
        except RuntimeError as error:  # a capture that fails ends with another error than its cause
            cause = error if isinstance(error, torch.OutOfMemoryError) else error.__context__
            if not isinstance(cause, torch.OutOfMemoryError):
                raise
            if has_run:
                return self.capture(step)  # torch's caches may have what is missing
            raise cause from error
        current.wait_stream(self._side)
        return graph.replay

    def _warm_up(self, step: Callable[[], None]) -> None:
        """Compile and load what the step needs, and free what torch's caches hold: a capture cannot."""
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            for _ in range(WARM_UP_RUNS):
                step()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def fetch(self, source: Tensor, target: Tensor) -> Event:
        """Start a copy to a host buffer, which may be read after the returned event."""
        target.copy_(source, non_blocking=True)
        # synchronize spins: on an H200 it returns 20 us after the device, where it slept 70. A step takes 70.
        arrived = torch.cuda.Event()
        arrived.record()
        return arrived

    def seconds(self, replay: Callable[[], None]) -> float:
        """Time of a replay on the device, the host apart: the best of several rounds, back to back."""
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        rounds = []
        for _ in range(TIMED_ROUNDS):
            started.record()
            for _ in range(TIMED_REPLAYS):
                replay()
            ended.record()
            ended.synchronize()
            rounds.append(started.elapsed_time(ended) / 1000 / TIMED_REPLAYS)
        return min(rounds)


class CapturedStep(NamedTuple):
    """The graph of one row bucket, with the places that it reads and writes."""

    replay: Callable[[], None]
    block: StepBlock
    output: StepOutput
    host_blocks: list[StepBlock]
    host_outputs: list[StepOutput]


class GraphRunner(ModelRunner):
    """A ModelRunner that replays captured steps.

    A launch is one copy to the device, one replay and one copy back.

    Args:
        graph_device: CudaDevice, or whatever stands in for it.
    """

    steps_ahead = 1

    def __init__(self, *args: Any, graph_device: CudaDevice):
        super().__init__(*args)
        self._graphs: dict[int, CapturedStep] = {}  # by row bucket
        self._graph_device = graph_device
        sizes = block_bytes(self.max_rows, self.max_rows), output_bytes(self.max_rows, self.config.image_shape)
        self._buffers = [torch.zeros(size, dtype=torch.uint8, device=self.device) for size in sizes]
        # Two of each, because the copies of the last step may still be under way.
        self._host_buffers = [
            [graph_device.host_buffer(size) for size in sizes] for _ in range(self.steps_ahead + 1)
        ]
        self._turn = 0

    def successor(self, model: nn.Module, config: ModelConfig) -> ModelRunner:
        arguments = (model, config, self.device, self.dtype, self.max_rows)
        return self._alike(GraphRunner(*arguments, graph_device=self._graph_device))

    def runs(self, rows: int) -> bool:
        return rows <= max(self._graphs)

    def padded(self, rows: int) -> int:
        return min((bucket for bucket in self._graphs if bucket >= rows), default=rows)

    @torch.inference_mode()
    def prepare(self, rows: int) -> None:
        block, *host_blocks = (StepBlock(pair[0], rows, rows) for pair in (self._buffers, *self._host_buffers))
        shape = self.config.image_shape
        output, *host_outputs = (StepOutput(pair[1], rows, shape) for pair in (self._buffers, *self._host_buffers))
        step = CapturedStep(lambda: None, block, output, host_blocks, host_outputs)
        self._send(self.table.look_up([]), step)
        # a successor knows the times of the runner before, so the same step has run there
        replay = self._graph_device.capture(lambda: self.advance(block, output), has_run=rows in self.step_seconds)
        self._graphs[rows] = step._replace(replay=replay)

    @torch.inference_mode()
    def launch(self, tasks: list[ImageTask]) -> LaunchedStep:
        arrays = self.table.look_up(tasks)
        rows = self.step_rows(arrays)
        step = self._graphs[rows]
        self._send(arrays, step)
        self.canvas.paint_before(arrays)
        step.replay()
        shown, here = arrays.num_shown, step.host_outputs[self._turn]
        end = self._graph_device.fetch(step.output.part(shown), here.part(shown))
        states = copy_states(self.pool, arrays)
        if states is None:
            return LaunchedStep(arrays, rows, here.finite, here.pixels, end)
        # a buffer of its own, which may be read as late as it likes; torch keeps pinned ones for later steps
        copied = self._graph_device.host_buffer(states.nbytes).view(states.dtype).view(states.shape)
        end = self._graph_device.fetch(states, copied)  # in the order of the stream, so behind the other copy
        return LaunchedStep(arrays, rows, here.finite, here.pixels, end, copied)

    def _send(self, arrays: TaskArrays, step: CapturedStep) -> None:
        """One asynchronous copy of the step's block to its fixed place on the device."""
        self._turn = (self._turn + 1) % len(step.host_blocks)
        host_block = step.host_blocks[self._turn]
        pack(host_block, arrays, self.config.num_classes, self.pool.scratch_slot)
        step.block.bytes.copy_(host_block.bytes, non_blocking=True)

    @torch.inference_mode()
    def _time_step(self, rows: int) -> float:
        """Of the device alone: the host may take long at a start, and is a step ahead later."""
        tasks = self.rehearsal(rows)
        self.execute(tasks)
        for task in tasks:
            task.step = 1
        step = self._graphs[rows]
        self._send(self.table.look_up(tasks), step)
        return self._graph_device.seconds(step.replay)
