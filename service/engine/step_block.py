"""What crosses between host and device at a step: one buffer to it, one back, so that each way is one copy.

Letters: R forward rows (n conditional ones, then one unconditional per guided image), n images of the step.
"""

import math
from typing import cast

import numpy as np
import torch
from torch import Tensor

from kernels.gather_rows import NUM_ROW_INDICES
from kernels.sampler_step import NUM_COEFFICIENTS, NUM_INDICES
from service.engine.plan import StepPlan
from service.engine.request import ImageTask

LOOK = 2  # factors of x and d in the image that leaves the device
BYTES_PER_ROW = 8 * (NUM_ROW_INDICES + 1 + NUM_INDICES + 1) + 4 * (1 + NUM_COEFFICIENTS + LOOK)  # where n = R


class StepBlock:
    """The tensors of one step, as views into a byte buffer.

    Args:
        buffer: uint8 of at least BYTES_PER_ROW * num_rows, on the host or on the device.
        num_images: at most num_rows.
    """

    def __init__(self, buffer: Tensor, num_rows: int, num_images: int):
        R, n = num_rows, num_images
        integers, numbers = [NUM_ROW_INDICES * R, R, NUM_INDICES * n, n], [R, NUM_COEFFICIENTS * n, LOOK * n]
        end = 8 * sum(integers)
        self.bytes = buffer[: end + 4 * sum(numbers)]
        rows, self.labels, indices, self.places = self.bytes[:end].view(torch.int64).split(integers)
        self.timesteps, coefficients, look = self.bytes[end:].view(torch.float32).split(numbers)
        self.rows = rows.view(R, NUM_ROW_INDICES)  # see kernels.gather_rows
        self.indices = indices.view(n, NUM_INDICES)  # see kernels.sampler_step
        self.coefficients = coefficients.view(n, NUM_COEFFICIENTS)
        self.look = look.view(n, LOOK)
        # labels [R], timesteps [R]; places [n] is where in StepOutput.pixels an image goes, -1 for most


class StepOutput:
    """What a step gives the host, as views into a byte buffer: the flags, and the pictures that leave with it.

    Args:
        buffer: uint8 of at least output_bytes(num_images, image_shape), on the host or on the device.
        num_images: images of the step.
        image_shape: C, H, W.
    """

    def __init__(self, buffer: Tensor, num_images: int, image_shape: tuple[int, int, int]):
        C, H, W = image_shape
        self._flags = aligned(num_images)
        self.bytes = buffer[: output_bytes(num_images, image_shape)]
        self.finite = self.bytes[:num_images].view(torch.bool)  # [n]
        self.pixels = self.bytes[self._flags :].view(num_images, H, W, C)

    def part(self, num_pictures: int) -> Tensor:
        """The bytes of the flags and of so many pictures."""
        return self.bytes[: self._flags + num_pictures * self.pixels[0].numel()]


def aligned(num_flags: int) -> int:
    """Bytes, so that pictures begin at a multiple of 16."""
    return -(-num_flags // 16) * 16


def output_bytes(num_images: int, image_shape: tuple[int, int, int]) -> int:
    return aligned(num_images) + num_images * math.prod(image_shape)


def pack(block: StepBlock, tasks: list[ImageTask], null_label: int, scratch_slot: int) -> None:
    """Write a step into a block on the host.

    A block may be larger than its step, so that steps of different sizes share a CUDA graph. The rest is padding:
    rows of the scratch slot, and images there whose coefficients are all zero.
    """
    n = len(tasks)
    numbers = np.frombuffer(b"".join([cast(StepPlan, t.request.plan).numbers[t.step] for t in tasks]), np.float32)
    numbers = numbers.reshape(n, 1 + NUM_COEFFICIENTS + LOOK)
    timesteps, coefficients, look = np.split(numbers, [1, 1 + NUM_COEFFICIENTS], axis=1)
    facts = [(t.slot, t.seed, t.step, t.class_label, t.rows, t.is_shown) for t in tasks]
    slot, seed, step, label, rows, is_shown = np.array(facts, dtype=np.int64).reshape(n, 6).T
    guided = np.flatnonzero(rows == 2)
    order = np.concatenate([np.arange(n), guided])  # image of each forward row
    R = len(order)

    block_rows, block_labels, block_timesteps = block.rows.numpy(), block.labels.numpy(), block.timesteps.numpy()
    block_rows[:R] = np.stack([slot, seed, step == 0], axis=1)[order]
    block_labels[:n], block_labels[n:] = label, null_label
    block_timesteps[:R] = timesteps[order, 0]
    block_rows[R:], block_timesteps[R:] = (scratch_slot, 0, 0), 0

    uncond_row = np.arange(n)
    uncond_row[guided] = np.arange(n, R)
    indices, block_coefficients = block.indices.numpy(), block.coefficients.numpy()
    indices[:n] = np.stack([slot, np.arange(n), uncond_row, seed, step + 1], axis=1)
    block_coefficients[:n] = coefficients
    indices[n:], block_coefficients[n:] = (scratch_slot, 0, 0, 0, 0), 0

    places, block_look = block.places.numpy(), block.look.numpy()
    places[:n], places[n:] = np.where(is_shown, np.cumsum(is_shown) - 1, -1), -1
    block_look[:n], block_look[n:] = look, 0
