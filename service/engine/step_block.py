"""The host's part of a step: everything that its kernels look up, in one buffer, so that it crosses in one copy.

Letters: R forward rows (n conditional ones, then one unconditional per guided image), n images of the step.
"""

from typing import cast

import numpy as np
import torch
from torch import Tensor

from kernels.gather_rows import NUM_ROW_INDICES
from kernels.sampler_step import NUM_COEFFICIENTS, NUM_INDICES
from service.engine.plan import StepPlan
from service.engine.request import ImageTask

BYTES_PER_ROW = 8 * (NUM_ROW_INDICES + 1 + NUM_INDICES + 1) + 4 * (1 + NUM_COEFFICIENTS)  # where n = R


class StepBlock:
    """The tensors of one step, as views into a byte buffer.

    Args:
        buffer: uint8 of at least BYTES_PER_ROW * num_rows, on the host or on the device.
        num_images: at most num_rows.
    """

    def __init__(self, buffer: Tensor, num_rows: int, num_images: int):
        R, n = num_rows, num_images
        integers, numbers = [NUM_ROW_INDICES * R, R, NUM_INDICES * n, n], [R, NUM_COEFFICIENTS * n]
        end = 8 * sum(integers)
        self.bytes = buffer[: end + 4 * sum(numbers)]
        rows, self.labels, indices, self.finished = self.bytes[:end].view(torch.int64).split(integers)
        self.timesteps, coefficients = self.bytes[end:].view(torch.float32).split(numbers)
        self.rows = rows.view(R, NUM_ROW_INDICES)  # see kernels.gather_rows
        self.indices = indices.view(n, NUM_INDICES)  # see kernels.sampler_step
        self.coefficients = coefficients.view(n, NUM_COEFFICIENTS)
        # labels [R], timesteps [R]; finished [n] holds the slots of images that end with this step, then padding


def pack(block: StepBlock, tasks: list[ImageTask], null_label: int, scratch_slot: int) -> None:
    """Write a step into a block on the host.

    A block may be larger than its step, so that steps of different sizes share a CUDA graph. The rest is padding:
    rows of the scratch slot, and images there whose coefficients are all zero.
    """
    n = len(tasks)
    plans = [cast(StepPlan, task.request.plan) for task in tasks]
    guided = [i for i, task in enumerate(tasks) if task.rows == 2]
    order = [*range(n), *guided]  # image of each forward row
    R = len(order)

    images = np.array([(cast(int, t.slot), t.seed, t.step == 0) for t in tasks], dtype=np.int64).reshape(n, 3)
    rows = block.rows.numpy()
    rows[:R], rows[R:] = images[order], (scratch_slot, 0, 0)
    labels, timesteps = block.labels.numpy(), block.timesteps.numpy()
    labels[:n], labels[n:] = [t.request.params.class_label for t in tasks], null_label
    steps = [p.timesteps[t.step] for p, t in zip(plans, tasks, strict=True)]
    timesteps[:R], timesteps[R:] = np.array(steps, dtype=np.float32)[order], 0

    uncond_row = np.arange(n)
    uncond_row[guided] = np.arange(n, R)
    indices, coefficients = block.indices.numpy(), block.coefficients.numpy()
    indices[n:], coefficients[n:] = (scratch_slot, 0, 0, 0, 0), 0
    for i, (plan, task) in enumerate(zip(plans, tasks, strict=True)):
        indices[i] = cast(int, task.slot), i, uncond_row[i], task.seed, task.step + 1
        coefficients[i] = plan.coefficients[task.step]

    finished = [cast(int, task.slot) for task in tasks if task.is_last_step]
    block.finished[: len(finished)] = torch.tensor(finished, dtype=torch.int64)
    block.finished[len(finished) :] = scratch_slot
