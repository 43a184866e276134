"""The plain loop that runs a sampler's table: the reference that the serving engine must reproduce."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from kernels.gather_rows import initial_noise
from kernels.sampler_step import Mixtures, sampler_step
from models.samplers import SamplerTable, T
from models.schedule import NUM_TIMESTEPS


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022) with the interval of Kynkaanniemi et al. 2024.

    scale w: M = M_uncond + w (M_cond - M_uncond); 1 is off. Applied while low <= u <= high.
    """

    scale: float = 1.0
    low: float = 0.0
    high: float = 1.0
    trained: tuple[float, float] | None = None  # scales that the network itself takes, which costs no second row
    negative: bool = False  # the second row is of a class; the network's own guidance has no such input

    def split(self, t: float, r: float) -> tuple[float, float]:
        """The scale between two rows of a step, and the one that is the network's input; 1 is no guidance.

        A jump, r < t, was learnt from a guided path with an interval of its own.
        """
        scale = self.scale if r < t or self.active(t) else 1.0
        is_input = self.trained is not None and self.trained[0] <= scale <= self.trained[1] and not self.negative
        return (1.0, scale) if is_input else (scale, 1.0)

    def active(self, t: float) -> bool:
        """Whether the step at timestep t needs an unconditional row."""
        u = round(t / NUM_TIMESTEPS, 9)  # a step at u = 0.1 is really at 0.09999999999999998
        return self.scale != 1 and self.low <= u <= self.high


def step_coefficients(table: SamplerTable, step: int, guidance: Guidance) -> list[float]:
    """The row that kernels.sampler_step reads: w, p, q, a, b, c, s, clamp."""
    t, *row = table.rows[step].tolist()
    return [guidance.split(t, float(table.jumps[step]))[0], *row, float(table.clamp)]


@dataclass(frozen=True)
class Further:
    """Classes of images besides labels, a row each: M_cond is the weighted sum of all (kernels/sampler_step.py).

    Args:
        owners: [m] int64, ascending, the image of each further class.
        labels: [m] int64.
        weights: [m] float32; an image's own label has what they leave of 1.
    """

    owners: Tensor
    labels: Tensor
    weights: Tensor

    def mixtures(self, n: int, first_row: int) -> Mixtures:
        """Of n images, if the rows of the further classes follow each other from first_row on."""
        counts = self.owners.bincount(minlength=n)
        ends = counts.cumsum(0) + first_row
        weights = torch.cat([self.weights.new_zeros(first_row), self.weights])
        return Mixtures(torch.stack([ends - counts, ends], dim=1), weights)


@dataclass(frozen=True)
class Known:
    """An image that samples start from, or of which they keep a part.

    Args:
        image: [C, H, W] float32, -1..1.
        free: [H, W] bool, what may change; None is everything.
    """

    image: Tensor
    free: Tensor | None = None

    def paint_step(self, x: Tensor, noise: Tensor, table: SamplerTable, step: int) -> None:
        """Bring x [n, C, H, W] to where a step begins, in place; noise is what x began with.

        At strength 1 the first step begins with that noise and nothing else, as without an image.
        """
        n, begins = len(x), step == 0
        if begins and table.strength == 1:
            return
        free = torch.ones_like(x[0, 0], dtype=torch.bool) if self.free is None else self.free
        levels = torch.tensor(table.levels[step], dtype=torch.float32, device=x.device)
        images, free = self.image.expand(n, -1, -1, -1), free & (not begins)
        x.copy_(paint(x, images, free.expand(n, 1, -1, -1), levels.expand(n, 2), noise))


def first_noise(seeds: Tensor, shape: tuple[int, ...], slerps: Sequence[tuple[int, float]] = ()) -> Tensor:
    """What images begin with, [n, *shape] float32.

    Args:
        seeds: [n] int64.
        slerps: of each image another seed, and how far it is on the way to its noise, 0 to 1. The way is an arc
            (spherical linear interpolation), so that each element stays standard normal; at 0 it is the noise of
            the image's own seed, bit by bit.
    """
    noise = initial_noise(seeds, shape)
    if moved := [image for image, (_, part) in enumerate(slerps) if part]:
        others, angles = zip(*((slerps[image][0], slerps[image][1] * math.pi / 2) for image in moved), strict=True)
        factors = [[math.cos(angle) for angle in angles], [math.sin(angle) for angle in angles]]
        cos, sin = torch.tensor(factors, device=noise.device)[:, :, None, None, None]  # each [moved, 1, 1, 1]
        noise[moved] = cos * noise[moved] + sin * initial_noise(torch.tensor(others, device=noise.device), shape)
    return noise


def paint(x: Tensor, images: Tensor, free: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
    """x where it is free, elsewhere the image under the noise that its request began with.

    So known pixels are always on the path from that noise to the image (Song et al. 2020, arXiv:2011.13456,
    appendix I, with one noise instead of a fresh one a step).

    Args:
        x, images, noise: [n, C, H, W] float32. free: [n, 1, H, W] bool. levels: [n, 2] float32, alpha and sigma.
    """
    alpha, sigma = levels[:, :, None, None, None].unbind(1)
    return torch.where(free, x, alpha * images + sigma * noise)


@torch.no_grad()
def sample(
    model: Callable[..., Tensor],
    table: SamplerTable,
    labels: Tensor,
    seeds: Tensor,
    image_shape: tuple[int, int, int],
    *,
    guidance: Guidance = Guidance(),
    null_label: int | None = None,
    known: Known | None = None,
    further: Further | None = None,
    slerps: Sequence[tuple[int, float]] = (),
    watch: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """The plain loop: one table for all images, the reference of the serving engine.

    Args:
        model: forward(x, t, y), and with guidance.trained forward(x, t, y, r, w).
        labels, seeds: [n] int64 on the model's device; image i depends on labels[i] and seeds[i] alone.
        null_label: the label of the second row of guided images; default model.num_classes.
        known: an image to start from or to keep a part of; what is kept is exact only if the caller puts it back.
        further: classes of images besides labels. slerps: where images begin; see first_noise.
        watch: called after each step with its number, x and d, which the next step overwrites.

    Returns:
        [n, C, H, W] float32, nominally in [-1, 1].
    """
    null = cast("Any", model).num_classes if null_label is None else null_label
    x = (noise := first_noise(seeds, image_shape, slerps)).clone()
    history = torch.zeros_like(x)
    for step in range(len(table)):
        if known is not None:
            known.paint_step(x, noise, table, step)
        output = _evaluate(model, x, table, step, guidance, labels, null, further)
        coefficients = torch.tensor(step_coefficients(table, step, guidance), device=labels.device)
        _update(x, history, output, coefficients, seeds, step, further)
        if watch is not None:
            watch(step, x, history)
    return x


def _update(
    x: Tensor,
    history: Tensor,
    output: Tensor,
    coefficients: Tensor,
    seeds: Tensor,
    step: int,
    further: Further | None,
) -> None:
    """One step of all images; the rows of output lie as _evaluate puts them."""
    n, rows = len(x), torch.arange(len(x), device=x.device)
    end = len(output) - (0 if further is None else len(further.owners))
    indices = torch.stack([rows, rows, rows + end - n, seeds, torch.full_like(rows, step + 1)], dim=1)
    mixtures = None if further is None else further.mixtures(n, end)
    sampler_step(x, history, output, indices, coefficients.expand(n, -1), mixtures=mixtures)


def _evaluate(
    model: Callable[..., Tensor],
    x: Tensor,
    table: SamplerTable,
    step: int,
    guidance: Guidance,
    labels: Tensor,
    null: int,
    further: Further | None,
) -> Tensor:
    """[R, C, H, W]: a row an image, a second one where the step is guided by them, and those of further classes."""
    t, r = float(table.rows[step, T]), float(table.jumps[step])
    between, given = guidance.split(t, r)
    images = torch.arange(len(x), device=x.device)
    owners, y = [images], [labels]
    if between != 1:
        owners, y = [images, images], [labels, torch.full_like(labels, null)]
    if further is not None:
        owners, y = [*owners, further.owners], [*y, further.labels]
    inputs = (t,) if guidance.trained is None else (t, r, given)
    rows = torch.cat(owners)
    times, *others = (torch.full((len(rows),), value, device=x.device) for value in inputs)
    return model(x[rows], times, torch.cat(y), *others)


def to_uint8(images: Tensor) -> Tensor:
    """Samples in -1..1 (clamped) to bytes 0..255."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
