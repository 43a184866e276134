"""One step on the device: gather rows, forward, sampler step, read what is finished.

Letters: n images of the step, R forward rows (n conditional ones, then one unconditional per guided image).
"""

import time
from bisect import bisect_left
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

WARM_UP_REPEATS = 3
KNEE = 0.8  # of the best throughput: rows beyond it add more latency than images


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
            Exception: whatever the model raises; no slot has advanced then, so the step may be repeated.
        """
        batch = self._gather(tasks)
        new = [row for row, task in enumerate(tasks) if task.step == 0]
        if new:
            self.pool.start(batch.indices[new, 0], batch.indices[new, 3])
        output = self.model(self.pool.x[batch.row_slots], batch.timesteps, batch.labels)  # [R, C, H, W]
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

    def warm_up(self, max_rows: int | None) -> int:
        """Run every row count once more than it takes to be fast, measure, and choose the row cap.

        max_rows: the cap if the operator set one. Returns the cap.
        """
        limit = max_rows or len(self.pool.x)
        for rows in range(1, limit + 1):
            self.step_seconds[rows] = min(self._time_step(rows) for _ in range(WARM_UP_REPEATS))
        return max_rows or knee(self.step_seconds)

    def _time_step(self, rows: int) -> float:
        tasks = self._rehearsal(rows)
        started = time.monotonic()
        self.execute(tasks)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic() - started

    def _rehearsal(self, rows: int) -> list[ImageTask]:
        """Tasks that fill a step of `rows` rows, guided where possible, as real traffic has them."""
        params = SamplingParams("", 0, 1, "ddpm", 1.5, (0.0, 1.0), seeds=(0,) * (rows // 2))
        single = SamplingParams("", 0, 1, "ddpm", 1.0, (0.0, 1.0), seeds=(0,) * (rows % 2))
        tasks = [task for p in (params, single) for task in Request("", p, compile_plan(self.config, p)).tasks]
        for slot, task in enumerate(tasks):
            task.slot = slot
        return tasks

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
