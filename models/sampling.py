"""The plain loop that runs a sampler's table: the reference that the serving engine must reproduce."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from kernels.philox import normal
from kernels.sampler_step import sampler_step
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

    def split(self, t: float, r: float) -> tuple[float, float]:
        """The scale between two rows of a step, and the one that the network is given; 1 is none.

        A jump, r < t, was learnt from a guided path with an interval of its own.
        """
        scale = self.scale if r < t or self.active(t) else 1.0
        is_input = self.trained is not None and self.trained[0] <= scale <= self.trained[1]
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
class Known:
    """An image that samples start from, or of which they keep a part.

    Args:
        image: [C, H, W] float32, -1..1.
        free: [H, W] bool, what may change; None is everything.
    """

    image: Tensor
    free: Tensor | None = None

    def paint_step(self, x: Tensor, seeds: Tensor, table: SamplerTable, step: int) -> None:
        """Bring x [n, C, H, W] to where a step begins, in place."""
        n, begins = len(x), step == 0 and table.strength < 1
        free = torch.ones_like(x[0, 0], dtype=torch.bool) if self.free is None else self.free
        levels = torch.tensor(table.levels[step], dtype=torch.float32, device=x.device)
        images, free = self.image.expand(n, -1, -1, -1), free & (not begins)
        x.copy_(paint(x, images, free.expand(n, 1, -1, -1), levels.expand(n, 2), seeds))


def paint(x: Tensor, images: Tensor, free: Tensor, levels: Tensor, seeds: Tensor) -> Tensor:
    """x where it is free, elsewhere the image under the noise that its request began with.

    So known pixels are always on the path from that noise to the image (Song et al. 2020, arXiv:2011.13456,
    appendix I, with one noise instead of a fresh one a step).

    Args:
        x, images: [n, C, H, W] float32. free: [n, 1, H, W] bool. levels: [n, 2] float32, alpha and sigma.
        seeds: [n] int64.
    """
    alpha, sigma = levels[:, :, None, None, None].unbind(1)
    noise = normal(seeds, torch.zeros_like(seeds), x[0].numel()).view(x.shape)
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
    watch: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """The plain loop: one table for all images, the reference that the serving engine must reproduce.

    Args:
        model: forward(x, t, y), and with guidance.trained forward(x, t, y, r, w).
        labels, seeds: [n] int64 on the model's device; image i depends on labels[i] and seeds[i] alone.
        null_label: the label of the unconditional rows; default model.num_classes.
        known: an image to start from or to keep a part of; what is kept is exact only if the caller puts it back.
        watch: called after each step with its number, x and d, which the next step overwrites.

    Returns:
        [n, C, H, W] float32, nominally in [-1, 1].
    """
    n, device = len(labels), labels.device
    null = cast("Any", model).num_classes if null_label is None else null_label
    x = normal(seeds, torch.zeros_like(seeds), math.prod(image_shape)).view(n, *image_shape)
    history, rows = torch.zeros_like(x), torch.arange(n, device=device)
    for step in range(len(table)):
        if known is not None:
            known.paint_step(x, seeds, table, step)
        output = _evaluate(model, x, table, step, guidance, labels, null)
        indices = torch.stack([rows, rows, rows + len(output) - n, seeds, torch.full_like(rows, step + 1)], dim=1)
        row = torch.tensor(step_coefficients(table, step, guidance), device=device)
        sampler_step(x, history, output, indices, row.expand(n, -1))
        if watch is not None:
            watch(step, x, history)
    return x


def _evaluate(
    model: Callable[..., Tensor],
    x: Tensor,
    table: SamplerTable,
    step: int,
    guidance: Guidance,
    labels: Tensor,
    null: int,
) -> Tensor:
    """[n, C, H, W], or [2 n, C, H, W] where the step is guided by unconditional rows."""
    t, r = float(table.rows[step, T]), float(table.jumps[step])
    between, given = guidance.split(t, r)
    y = labels if between == 1 else torch.cat([labels, torch.full_like(labels, null)])
    inputs = (t,) if guidance.trained is None else (t, r, given)
    times, *others = (torch.full((len(y),), value, device=x.device) for value in inputs)
    return model(x[torch.arange(len(y), device=x.device) % len(x)], times, y, *others)


def to_uint8(images: Tensor) -> Tensor:
    """Samples in -1..1 (clamped) to bytes 0..255."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
