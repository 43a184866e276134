"""A model that takes time and computes nothing, for load tests and capacity planning at accelerator speed.

A step of B rows costs t0 + t1 * B of one exclusive device. Everything else is the real service: requests, queues,
scheduler, admission, the host's part of a step, encoding. The pictures are stripes that no model would draw.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from models.checkpoint import ModelConfig
from service.engine.launched import LaunchedStep
from service.engine.request import ImageTask
from service.engine.row_cap import knee
from service.engine.runner import ModelRunner
from service.engine.simulated_device import SimulatedDevice, StepCost
from service.engine.slot_table import TaskArrays
from service.engine.step_block import StepBlock, block_bytes, pack
from service.engine.trajectory import copy_states

NO_WEIGHTS = torch.device("cpu")


class SimulatedRunner(ModelRunner):
    """A ModelRunner whose steps take a configured time, launched ahead as those of a GraphRunner are.

    Args:
        device: shared by all models of a process; default: one of its own.
    """

    steps_ahead = 1
    backend = "none"

    def __init__(self, config: ModelConfig, cost: StepCost, max_rows: int, device: SimulatedDevice | None = None):
        super().__init__(nn.Identity(), config, NO_WEIGHTS, torch.float32, max_rows)
        self.cost, self.simulated_device = cost, device or SimulatedDevice()
        self._picture = torch.from_numpy(stripes(config.image_shape))
        self._host_buffer = torch.empty(block_bytes(max_rows, max_rows), dtype=torch.uint8)
        self._host_blocks: dict[int, StepBlock] = {}  # by row count, as a GraphRunner has them

    def successor(self, model: nn.Module, config: ModelConfig) -> ModelRunner:
        return self._alike(SimulatedRunner(config, self.cost, self.max_rows, self.simulated_device))

    def launch(self, tasks: list[ImageTask]) -> LaunchedStep:
        step = self.table.look_up(tasks)
        rows = self.step_rows(step)
        self.send(step, rows)
        end = self.simulated_device.launch(self.cost.seconds(rows))
        pixels = self._picture.expand(step.num_shown, -1, -1, -1)
        finite = torch.ones(len(tasks), dtype=torch.bool)
        return LaunchedStep(step, rows, finite, pixels, end, copy_states(self.pool, step))

    def send(self, step: TaskArrays, rows: int) -> None:
        """The host's part of a step, as it is before a forward on a GPU."""
        if rows not in self._host_blocks:
            self._host_blocks[rows] = StepBlock(self._host_buffer, rows, rows)
        pack(self._host_blocks[rows], step, self.config.num_classes, self.pool.scratch_slot)

    def choose_cap(self) -> int:
        return knee(self.step_seconds)

    def describe(self) -> dict[str, Any]:
        return {"device": "simulated", "dtype": "none", "backend": self.backend}


def stripes(image_shape: tuple[int, int, int]) -> np.ndarray:
    """[H, W, C] uint8."""
    C, H, W = image_shape
    diagonal = (np.arange(H)[:, None] + np.arange(W)) // 4 % 2
    return np.repeat((diagonal * 160 + 48).astype(np.uint8)[:, :, None], C, axis=2)
