"""One step on the device: gather rows, forward, sampler step, read what is finished.

Letters: n images of the step, R forward rows (n conditional ones, then one unconditional per guided image).
"""

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from kernels.sampler_step import NUM_INDICES, sampler_step
from models.checkpoint import ModelConfig
from service.engine.latents import LatentPool
from service.engine.plan import StepPlan, compile_plan
from service.engine.request import ImageTask, Request, SamplingParams

WARM_UP_REPEATS = 2
ALL_COUNTS = 16  # every row count up to here is warmed up and measured, then steps of about a half
KNEE = 0.8  # of the best throughput: rows beyond it add more latency than images


class ModelFailed(Exception):
    """The network raised in its forward; the cause says what."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave besides new latents."""

    images: dict[ImageTask, np.ndarray] = field(default_factory=dict)  # finished ones, [H, W, C] uint8
    failed: dict[ImageTask, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The host's part of a step, as tensors on the device."""

    row_slots: Tensor  # [R] int64
    timesteps: Tensor  # [R] float32
    labels: Tensor  # [R] int64
    indices: Tensor  # [n, 5] int64, see kernels.sampler_step
    coefficients: Tensor  # [n, 8] float32


class ModelRunner:
    """A model, its latent pool and its measured step times.

    Args:
        num_slots: images that may run at once; the largest row count that warm_up will try.
    """

    def __init__(
        self, model: nn.Module, config: ModelConfig, device: torch.device, dtype: torch.dtype, num_slots: int
    ):
        self.config, self.device, self.dtype = config, device, dtype
        self.model = model.to(device, dtype).eval()
        self.pool = LatentPool(num_slots, config.image_shape, device)
        self.step_seconds: dict[int, float] = {}  # measured by warm_up, by row count

    @torch.inference_mode()
    def execute(self, tasks: list[ImageTask]) -> StepResult:
        """Run one step of every task; their slots advance in place.

        Raises:
            ModelFailed: the model raised. No slot has advanced then, so the step may be repeated.
        """
        batch = self._gather(tasks)
        new = [row for row, task in enumerate(tasks) if task.step == 0]
        if new:
            self.pool.start(batch.indices[new, 0], batch.indices[new, 3])
        rows = self.pool.x[batch.row_slots].to(self.dtype)  # [R, C, H, W]
        try:
            output = self.model(rows, batch.timesteps, batch.labels)  # [R, C, H, W]
        except Exception as error:
            raise ModelFailed(type(error).__name__) from error
        finite = sampler_step(self.pool.x, self.pool.history, output, batch.indices, batch.coefficients)
        return self._collect(tasks, finite.tolist())

    def _gather(self, tasks: list[ImageTask]) -> StepBatch:
        plans = [cast(StepPlan, task.request.plan) for task in tasks]
        indices = np.empty((len(tasks), NUM_INDICES), dtype=np.int64)  # [n, 5]
        uncond_row = count(len(tasks))
        for i, task in enumerate(tasks):
            slot = cast(int, task.slot)
            indices[i] = slot, i, next(uncond_row) if task.rows == 2 else i, task.seed, task.step + 1
        coefficients = np.stack([p.coefficients[t.step] for p, t in zip(plans, tasks, strict=True)])
        timesteps = np.array([p.timesteps[t.step] for p, t in zip(plans, tasks, strict=True)])
        labels = np.array([task.request.params.class_label for task in tasks])

        guided = np.array([i for i, task in enumerate(tasks) if task.rows == 2], dtype=np.int64)
        rows = np.concatenate([np.arange(len(tasks)), guided])  # image of each forward row
        row_labels = labels[rows]
        row_labels[len(tasks) :] = self.config.num_classes  # the null class
        return StepBatch(
            *(self._put(a) for a in (indices[rows, 0], timesteps[rows], row_labels, indices, coefficients))
        )

    def _put(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _collect(self, tasks: list[ImageTask], finite: list[bool]) -> StepResult:
        failed = {
            task: f"the model gave a non-finite image at step {task.step + 1}"
            for task, ok in zip(tasks, finite, strict=True)
            if not ok
        }
        done = [task for task in tasks if task.is_last_step and task not in failed]
        if not done:
            return StepResult(failed=failed)
        pixels = self.pool.read(torch.tensor([cast(int, task.slot) for task in done], device=self.device))
        return StepResult(dict(zip(done, pixels, strict=True)), failed)

    def warm_up(self, max_rows: int | None, on_progress: Callable[[], None] = lambda: None) -> int:
        """Run each row count until it is fast, keep its best time, and choose the row cap.

        max_rows: the cap if the operator set one. on_progress: called after each count. Returns the cap, which is
        lower where the device has no memory for more.
        """
        for rows in row_counts(max_rows or len(self.pool.x)):
            try:
                self.step_seconds[rows] = min(self._time_step(rows) for _ in range(WARM_UP_REPEATS))
            except (torch.OutOfMemoryError, ModelFailed) as error:
                if rows <= 2 or not isinstance(error.__cause__ or error, torch.OutOfMemoryError):
                    raise
                max_rows = max_rows and max(self.step_seconds)
                break
            on_progress()
        return max_rows or knee(self.step_seconds)

    def _time_step(self, rows: int) -> float:
        """Seconds of a step in the middle of its requests; the first and the last one are run, too."""
        tasks = self._rehearsal(rows)
        seconds = []
        for step in range(3):
            for task in tasks:
                task.step = step
            started = time.monotonic()
            self.execute(tasks)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds.append(time.monotonic() - started)
        return seconds[1]

    def _rehearsal(self, rows: int) -> list[ImageTask]:
        """Tasks that fill a step of `rows` rows, guided where possible, with every kind of sampler."""
        wanted = [("ddpm", 1.5, rows // 2), ("dpmpp_2m", 1.0, rows % 2)]
        tasks = []
        for sampler, guidance, images in wanted:
            params = SamplingParams("", 0, 3, sampler, guidance, (0.0, 1.0), seeds=(0,) * images)
            tasks += Request("", params, compile_plan(self.config, params)).tasks
        for slot, task in enumerate(tasks):
            task.slot = slot
        return tasks

    def idle_seconds(self, request: Request, max_rows: int) -> float:
        """What the request would take if it were alone; its images take turns where they do not fit together."""
        images = len(request.tasks)
        turns = [divmod(images * rows, max_rows) for rows in request.plan.rows]
        return sum(full * self.seconds(max_rows) + (self.seconds(rest) if rest else 0.0) for full, rest in turns)

    def seconds(self, rows: int) -> float:
        """Measured time of a step of `rows` rows (of the next larger count that was measured)."""
        counts = sorted(self.step_seconds)
        if not counts:
            return 0.0
        return self.step_seconds[counts[min(bisect_left(counts, rows), len(counts) - 1)]]

    def describe(self) -> dict[str, Any]:
        return {"device": str(self.device), "dtype": str(self.dtype).removeprefix("torch.")}


def knee(step_seconds: dict[int, float]) -> int:
    """The smallest row count with 80 % of the best rows per second, at least 2."""
    throughput = {rows: rows / seconds for rows, seconds in step_seconds.items()}
    best = max(throughput.values())
    return max(2, min(rows for rows, value in throughput.items() if value >= KNEE * best))


def row_counts(limit: int) -> list[int]:
    """1, 2, 3, ... 16, 24, 32, 48, 64, 96, ... and the limit itself."""
    counts = list(range(1, min(limit, ALL_COUNTS) + 1))
    while counts[-1] < limit:
        step = 1 << (counts[-1].bit_length() - 2)
        counts.append(min(limit, counts[-1] + step))
    return counts


def device_is_lost(error: BaseException | None) -> bool:
    """A CUDA error other than a lack of memory poisons the context: nothing after it can succeed."""
    return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)
