"""One step on the device: gather rows, forward, sampler step.

This is the plain runner, one launch at a time; service/engine/graphs.py replays the same step as a CUDA graph.
Letters: n images of the step, R forward rows, as in service/engine/step_block.py.
"""

import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kernels.gather_rows import gather_rows
from kernels.sampler_step import Mixtures, Pictures, sampler_step
from models.checkpoint import ModelConfig, parameter_count
from service.engine.canvas import Canvas
from service.engine.latents import LatentPool
from service.engine.launched import LaunchedStep, StepResult
from service.engine.plan import compile_plan
from service.engine.request import ImageTask, Request
from service.engine.row_cap import knee, row_counts
from service.engine.scheduler import SLOTS_PER_ROW
from service.engine.slot_table import SlotTable, TaskArrays
from service.engine.step_block import StepBlock, StepOutput, block_bytes, output_bytes, pack
from service.engine.trajectory import copy_states
from service.wire.messages import SamplingParams

logger = logging.getLogger(__name__)

REHEARSED = (0, 1, 1, 1, 2)  # the first step, some in the middle, and the last
MIDDLE = (1, 1, 1)  # the first one makes the libraries ready for its row count, two are timed
OutOfMemory = torch.OutOfMemoryError


class ModelFailed(Exception):
    """The network raised in its forward; the cause says what."""


class ModelRunner:
    """A model, its latent pool and its measured step times.

    Args:
        max_rows: the largest row count that warm_up will try. There are more slots, so that images can take turns.
    """

    steps_ahead = 0  # steps that the host may launch before it collects the oldest one
    backend = "torch"  # that runs the network; the bits of an image depend on it
    is_int8 = False  # whether products are computed in int8; dtype is that of all other operations
    ranges = ""  # SHA-256 of the ranges by which int8 rounds; the bits depend on it, too
    make_faster: "MakeFaster | None" = None  # makes the runner that will replace this one, of the same weights
    version = 1  # of the weights: one more with each swap
    repeats_itself: bool | None = None  # whether the deterministic mode works; None until that is tested
    wait_for_quiet: Callable[[Callable[[], None]], None] | None = None  # before warm_up takes times

    def __init__(
        self, model: nn.Module, config: ModelConfig, device: torch.device, dtype: torch.dtype, max_rows: int
    ):
        self.config, self.device, self.dtype = config, device, dtype
        self.model = model.to(device, dtype).eval()
        layout = lay_out(self.model, device)
        num_slots = SLOTS_PER_ROW * max_rows
        self.pool = LatentPool(num_slots, config.image_shape, device, layout)
        self.canvas, self.table = Canvas(self.pool), SlotTable(num_slots)
        self.max_rows, self.num_parameters = max_rows, parameter_count(self.model)
        self.step_seconds: dict[int, float] = {}  # measured by warm_up, by row count
        self.fixed_rows = max_rows  # of every step with a deterministic image

    def successor(self, model: nn.Module, config: ModelConfig) -> "ModelRunner":
        """A runner of the same network with other weights, beside this one; `prepare` is still to be called.

        It takes the measured times over, for they depend on the network's sizes and not on its weights.
        """
        return self._alike(ModelRunner(model, config, self.device, self.dtype, self.max_rows))

    def _alike(self, other: "ModelRunner") -> "ModelRunner":
        other.step_seconds, other.fixed_rows = dict(self.step_seconds), self.fixed_rows
        other.repeats_itself, other.num_parameters = self.repeats_itself, self.num_parameters
        return other

    def execute(self, tasks: list[ImageTask]) -> StepResult:
        """Run one step of every task to its end; see launch."""
        return self.launch(tasks).collect()

    @torch.inference_mode()
    def launch(self, tasks: list[ImageTask]) -> LaunchedStep:
        """Start one step of every task; their slots advance in place.

        Raises:
            ModelFailed: the model raised. No slot has advanced then, so the step may be repeated.
        """
        step = self.table.look_up(tasks)
        rows = self.step_rows(step)
        block = StepBlock(torch.empty(block_bytes(rows, len(tasks)), dtype=torch.uint8), rows, len(tasks))
        pack(block, step, self.config.num_classes, self.pool.scratch_slot)
        block = StepBlock(block.bytes.to(self.device), rows, len(tasks))
        self.canvas.paint_before(step)
        output = self.output(len(tasks), self.device)
        self.advance(block, output)
        states = copy_states(self.pool, step)
        shown = output.finite.cpu(), output.pixels[: step.num_shown].cpu()
        return LaunchedStep(step, rows, *shown, states=None if states is None else states.cpu())

    def output(self, num_images: int, device: torch.device) -> StepOutput:
        shape = self.config.image_shape
        size = output_bytes(num_images, shape)
        return StepOutput(torch.empty(size, dtype=torch.uint8, device=device), num_images, shape)

    def rows_of(self, tasks: list[ImageTask]) -> int:
        """Forward rows of a step of these tasks, with the padding."""
        return self.step_rows(self.table.look_up(tasks))

    def step_rows(self, step: TaskArrays) -> int:
        """Rows that a step really runs; see service/engine/repetition.py for deterministic images."""
        rows = step.num_rows
        return self.padded(max(rows, self.fixed_rows) if step.is_deterministic else rows)

    def runs(self, rows: int) -> bool:
        """Whether steps of so many rows are possible."""
        return True

    def padded(self, rows: int) -> int:
        """The least row count from `rows` on that the device runs."""
        return rows

    def advance(self, block: StepBlock, output: StepOutput) -> None:
        """The device's part of a step."""
        rows = gather_rows(self.pool.x, block.rows, self.dtype)  # [R, C, H, W]
        others = (block.jumps, block.scales) if self.config.is_few_step else ()
        try:
            predicted = self.model(rows, block.timesteps, block.labels, *others)  # [R, C, H, W]
        except Exception as error:
            raise ModelFailed(type(error).__name__) from error
        pictures = Pictures(output.pixels, block.places, block.preview)
        state = self.pool.x, self.pool.history
        mixtures = Mixtures(block.spans, block.weights)
        sampler_step(*state, predicted, block.indices, block.coefficients, output.finite, pictures, mixtures)

    def prepare(self, rows: int) -> None:
        """Whatever makes later steps of `rows` rows fast; called once a row count, the largest first."""

    def warm_up(self, max_rows: int | None, on_progress: Callable[[], None] = lambda: None) -> int:
        """Run each row count until it is fast, keep its best time, and choose the row cap.

        Args:
            max_rows: the cap if the operator set one.
            on_progress: called after each part.

        Returns:
            The cap, which is lower where the device has no memory for more.

        Raises:
            OutOfMemory, ModelFailed: not even two rows fit, or the network raised.
        """
        self.step_seconds.clear()
        possible = list[int]()
        for rows in reversed(row_counts(max_rows or self.max_rows)):
            with self._room_for(rows):
                self.prepare(rows)
                possible.append(rows)
                logger.debug("steps of %d rows are prepared", rows)
            on_progress()
        if self.wait_for_quiet:
            self.wait_for_quiet(on_progress)
        for rows in possible:
            with self._room_for(rows):
                self.step_seconds[rows] = self._time_step(rows)
                logger.debug("a step of %d rows takes %.3f ms", rows, 1000 * self.step_seconds[rows])
            on_progress()
        return max(self.step_seconds) if max_rows else self.choose_cap()

    @contextmanager
    def _room_for(self, rows: int) -> Iterator[None]:
        """Leave the block where memory lacks, except for a row count without which nothing can be served."""
        try:
            yield
        except (OutOfMemory, ModelFailed) as error:
            if rows <= 2 or not isinstance(error.__cause__ or error, OutOfMemory):
                raise

    def choose_cap(self) -> int:
        """On a CPU the largest count that ran; elsewhere the knee of the measured times.

        On a CPU other processes decide what a start measures: in starts of one machine the knee was 4, 8 or 16.
        """
        return max(self.step_seconds) if self.device.type == "cpu" else knee(self.step_seconds)

    def _time_step(self, rows: int) -> float:
        """Seconds of the fastest step in the middle of its requests.

        The first and the last one differ in nothing that depends on the row count, so the largest count alone runs
        them: 26 forwards in all for 8 counts.
        """
        tasks = self.rehearsal(rows)
        seconds = []
        for step in MIDDLE if self.step_seconds else REHEARSED:
            for task in tasks:
                task.step = step
            started = time.monotonic()
            self.execute(tasks)
            seconds.append((step != 1, time.monotonic() - started))
        return min(seconds)[1]

    def rehearsal(self, rows: int) -> list[ImageTask]:
        """Tasks that fill a step of `rows` rows, guided where possible, with every kind of sampler."""
        wanted = [("ddpm", self.config.two_row_guidance, rows // 2), ("dpmpp_2m", 1.0, rows % 2)]
        tasks = []
        for sampler, guidance, images in wanted:
            params = SamplingParams("", 0, 3, sampler, guidance, (0.0, 1.0), seeds=(0,) * images)
            tasks += Request("", params, compile_plan(self.config, params)).tasks
        for slot, task in enumerate(tasks):
            task.slot = slot
        return tasks

    def idle_seconds(self, request: Request, max_rows: int) -> float:
        """What the request would take if it were alone; its images take turns where they do not fit together."""
        steps_by_rows = request.steps_by_rows
        if request.params.deterministic:
            turns = -(-max(steps_by_rows) // max_rows)
            return turns * sum(steps_by_rows.values()) * self.seconds(self.fixed_rows)
        seconds = 0.0
        for rows, steps in steps_by_rows.items():
            full, rest = divmod(rows, max_rows)
            seconds += steps * (full * self.seconds(max_rows) + (self.seconds(rest) if rest else 0.0))
        return seconds

    def seconds(self, rows: int) -> float:
        """Measured time of a step of `rows` rows (of the next larger count that was measured)."""
        counts = sorted(self.step_seconds)
        if not counts:
            return 0.0
        return self.step_seconds[counts[min(bisect_left(counts, rows), len(counts) - 1)]]

    def describe(self) -> dict[str, Any]:
        dtype = "int8" if self.is_int8 else str(self.dtype).removeprefix("torch.")
        return {"device": str(self.device), "dtype": dtype, "backend": self.backend}


# Takes a runner and returns a faster one of the same weights, after some seconds. It raises if it fails, and soon
# after the event is set.
MakeFaster = Callable[[ModelRunner, threading.Event], ModelRunner]


def lay_out(model: nn.Module, device: torch.device) -> torch.memory_format:
    """Bring the weights of convolutions into the layout that the device prefers, which is returned."""
    layout = preferred_layout(model, device)
    for weight in (p for p in model.parameters() if p.dim() == 4):
        weight.data = weight.data.contiguous(memory_format=layout)
    return layout


def preferred_layout(model: nn.Module, device: torch.device) -> torch.memory_format:
    """Convolutions on tensor cores want their channels side by side; on a CPU the usual order is as fast."""
    convolutional = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return torch.channels_last if convolutional and device.type == "cuda" else torch.contiguous_format


def device_is_lost(error: BaseException | None) -> bool:
    """A CUDA error other than a lack of memory poisons the context: nothing after it can succeed."""
    return isinstance(error, torch.AcceleratorError) and not isinstance(error, OutOfMemory)
