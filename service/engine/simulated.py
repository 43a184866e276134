"""A device that takes time and computes nothing, for load tests and capacity planning at accelerator speed.

A step of B rows costs t0 + t1 * B of one exclusive device. Everything else is the real service: requests, queues,
scheduler, admission, encoding. The pictures are stripes that no model would draw.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from models.checkpoint import ModelConfig
from service.engine.request import ImageTask
from service.engine.runner import LaunchedStep, ModelRunner, knee

NO_WEIGHTS = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class StepCost:
    """Milliseconds of a step: t0 + t1 * rows."""

    t0_ms: float
    t1_ms: float

    def seconds(self, rows: int) -> float:
        return (self.t0_ms + self.t1_ms * rows) / 1000


def sleep_until(ends: float) -> None:
    """A sleep may overshoot by a tenth of a millisecond, which is much of a step of two: the rest is spun."""
    if (rest := ends - time.monotonic() - 2e-4) > 0:
        time.sleep(rest)
    while time.monotonic() < ends:
        pass


class SimulatedRunner(ModelRunner):
    """A ModelRunner whose steps last as long as they are told to."""

    def __init__(
        self,
        config: ModelConfig,
        cost: StepCost,
        num_slots: int,
        clock: Callable[[], float] = time.monotonic,
        sleep_until: Callable[[float], None] = sleep_until,
    ):
        super().__init__(nn.Identity(), config, NO_WEIGHTS, torch.float32, num_slots)
        self.cost, self.clock, self._sleep_until = cost, clock, sleep_until
        self._picture = torch.from_numpy(stripes(config.image_shape))

    def launch(self, tasks: list[ImageTask]) -> LaunchedStep:
        ends = self.clock() + self.cost.seconds(self.step_rows(tasks))
        shown = sum(task.is_shown for task in tasks)
        pixels = self._picture.expand(shown, -1, -1, -1).clone() if shown else None
        finite = torch.ones(len(tasks), dtype=torch.bool)
        return LaunchedStep(tasks, finite, pixels, lambda: self._sleep_until(ends))

    def choose_cap(self) -> int:
        return knee(self.step_seconds)

    def describe(self) -> dict[str, Any]:
        return {"device": "simulated", "dtype": "none"}


def stripes(image_shape: tuple[int, int, int]) -> np.ndarray:
    """[H, W, C] uint8."""
    C, H, W = image_shape
    diagonal = (np.arange(H)[:, None] + np.arange(W)) // 4 % 2
    return np.repeat((diagonal * 160 + 48).astype(np.uint8)[:, :, None], C, axis=2)
