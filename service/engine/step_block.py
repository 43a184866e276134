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


def _sections(num_rows: int, num_images: int) -> list[int]:
    """Bytes of rows, labels, indices, places, spans, inputs, coefficients and preview."""
    R, n = num_rows, num_images
    integers = [8 * count for count in (NUM_ROW_INDICES * R, R, NUM_INDICES * n, n, SPAN * n)]
    return integers + [4 * aligned(4 * R), 4 * NUM_COEFFICIENTS * n, 4 * NUM_PREVIEW * n]


def aligned(size: int) -> int:
    """Bytes up to the next multiple of 16.

    Triton compiles a kernel again for pointers of another alignment. If that changed with the images of a step, a
    runner without CUDA graphs would compile while requests wait.
    """
    return -(-size // 16) * 16


def block_bytes(num_rows: int, num_images: int) -> int:
    return sum(map(aligned, _sections(num_rows, num_images)))


class StepBlock:
    """The tensors of one step, as views into a byte buffer.

    Args:
        buffer: uint8 of at least block_bytes(num_rows, num_images), on the host or on the device.
        num_images: at most num_rows.
    """

    def __init__(self, buffer: Tensor, num_rows: int, num_images: int):
        R, n = num_rows, num_images
        sizes = _sections(R, n)
        self.bytes = buffer[: block_bytes(R, n)]
        parts = self.bytes.split([aligned(size) for size in sizes])
        rows, labels, indices, places, spans, inputs, coefficients, preview = (
            part[:size].view(torch.int64 if number < 5 else torch.float32)
            for number, (part, size) in enumerate(zip(parts, sizes, strict=True))
        )
        self.labels, self.places = labels, places
        self.inputs = inputs.view(4, -1)[:, :R]
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
