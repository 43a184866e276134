"""What crosses between host and device at a step: one buffer to it, one back, so that each way is one copy.

Letters: n images of the step, R forward rows: the first class of each image, then a second row of each guided one,
then those of further classes.
"""

import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from kernels.gather_rows import NUM_ROW_INDICES
from kernels.sampler_step import NUM_COEFFICIENTS, NUM_INDICES
from service.engine.plan import COEFFICIENTS, INPUTS, NUM_PREVIEW, PREVIEW
from service.engine.slot_table import TaskArrays

SPAN = 2  # first row of an image's further classes, and the one behind the last
INTEGERS, NUMBERS = NUM_ROW_INDICES + 1 + NUM_INDICES + 1 + SPAN, 4 + NUM_COEFFICIENTS + NUM_PREVIEW
BYTES_PER_ROW = 8 * INTEGERS + 4 * NUMBERS  # where n = R


class StepBlock:
    """The tensors of one step, as views into a byte buffer.

    Args:
        buffer: uint8 of at least BYTES_PER_ROW * num_rows, on the host or on the device.
        num_images: at most num_rows.
    """

    def __init__(self, buffer: Tensor, num_rows: int, num_images: int):
        R, n = num_rows, num_images
        integers = [NUM_ROW_INDICES * R, R, NUM_INDICES * n, n, SPAN * n]
        numbers = [4 * R, NUM_COEFFICIENTS * n, NUM_PREVIEW * n]
        end = 8 * sum(integers)
        self.bytes = buffer[: end + 4 * sum(numbers)]
        rows, self.labels, indices, self.places, spans = self.bytes[:end].view(torch.int64).split(integers)
        inputs, coefficients, preview = self.bytes[end:].view(torch.float32).split(numbers)
        self.inputs = inputs.view(4, R)
        self.timesteps, self.jumps, self.scales, self.weights = self.inputs.unbind(0)
        self.rows = rows.view(R, NUM_ROW_INDICES)  # see kernels.gather_rows
        self.indices = indices.view(n, NUM_INDICES)  # see kernels.sampler_step
        self.coefficients = coefficients.view(n, NUM_COEFFICIENTS)
        self.preview = preview.view(n, NUM_PREVIEW)
        self.spans = spans.view(n, SPAN)
        # labels, timesteps, jumps, scales and weights are [R]: jumps and scales for few-step networks alone,
        # weights of further classes alone. places [n] is where in StepOutput.pixels an image goes, -1 for most

    @cached_property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Of a block on the host."""
        numbers = self.indices, self.coefficients, self.places, self.preview, self.spans
        return tuple(tensor.numpy() for tensor in (self.rows, self.labels, self.inputs, *numbers))


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


def pack(block: StepBlock, step: TaskArrays, null_label: int, scratch_slot: int) -> None:
    """Write a step into a block on the host.

    A block may be larger than its step, so that steps of different sizes share a CUDA graph. The rest is padding:
    rows of the scratch slot, and images there whose coefficients are all zero.
    """
    n, guided = len(step.tasks), np.flatnonzero(step.guided)
    R = n + len(guided)
    rows, labels, inputs, indices, coefficients, places, preview, spans = block.arrays
    rows[:n, 0], rows[:n, 1], rows[:n, 2] = step.slots, step.seeds, step.fresh
    rows[n:R] = rows[guided]
    rows[R:] = scratch_slot, 0, 0
    labels[:n], labels[R:] = step.labels, null_label
    labels[n:R] = np.where(step.second_labels < 0, null_label, step.second_labels)[guided]
    inputs[:3, :n], inputs[3, :R] = step.numbers[:, INPUTS].T, 0
    inputs[:, n:R], inputs[:, R:] = inputs[:, guided], 0

    conditional = np.arange(n)
    indices[:n, 0], indices[:n, 1], indices[:n, 2] = step.slots, conditional, conditional
    indices[:n, 3], indices[:n, 4] = step.seeds, step.steps + 1
    indices[guided, 2] = np.arange(n, R)
    indices[n:], coefficients[n:] = (scratch_slot, 0, 0, 0, 0), 0
    coefficients[:n] = step.numbers[:, COEFFICIENTS]

    places[:n], places[n:] = np.where(step.shown, np.cumsum(step.shown) - 1, -1), -1
    preview[:n], preview[n:] = step.numbers[:, PREVIEW], 0
    spans[:] = 0
    if len(step.further.places):
        _pack_further(block, step, R)


def _pack_further(block: StepBlock, step: TaskArrays, start: int) -> None:
    """The rows of further classes, from row `start` on."""
    owners, further_labels, weights = step.further
    rows, labels, inputs, *_, spans = block.arrays
    taken = slice(start, start + len(owners))
    rows[taken], labels[taken] = rows[owners], further_labels
    inputs[:3, taken], inputs[3, taken] = inputs[:3, owners], weights
    counts = np.bincount(owners, minlength=len(step.tasks))
    ends = start + np.cumsum(counts)
    spans[: len(counts), 0], spans[: len(counts), 1] = ends - counts, ends
