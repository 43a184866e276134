"""Few-step tuning: a network learns to jump along the paths that it takes in many guided steps.

The teacher is the network that the run starts from. One Euler step of it, guided, leads from x_t to x_s, shortly
before t. From there the student, without gradient, jumps on to x_r. The student learns to reach that x_r from x_t
in one jump (consistency trajectories, Kim et al. 2023, arXiv:2310.02279), which is

    x_r = (r / t) x_t + (1 - r / t) D(x_t, t, r, w).

Where r = t, D is the guided denoiser itself, so a guided step of any sampler costs one row (Meng et al. 2022,
arXiv:2210.03142). The guidance scale w is an input, so one network has all of them.

Letters: B batch, C x H x W the image; noise times t, r, s lie in 0..1 here, on 0..1000 in the network.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.checkpoint import ModelConfig
from models.schedule import NUM_TIMESTEPS, sample_noise_times

GUIDANCE_RANGE = (1.0, 3.0)  # of w in training
TEACHER_STEPS = 16  # that the teacher takes from noise to image
DENOISING = 0.25  # share of the batch with r = t
TO_THE_END = 0.5  # share of the jumps with r = 0
HUBER = 0.03  # times the root of the number of elements: smaller errors count squared (arXiv:2310.14189)


def few_step_config(config: ModelConfig, teacher: ModelConfig) -> ModelConfig:
    """config with what a tuned checkpoint can do: two jumps, one for a draft, the teacher's way at best."""
    jumps = {"sampler": "consistency", "steps": 2, "spacing": "shifted"}
    ways = {"sampling": teacher.default_sampling | jumps, "qualities": {"draft": {"steps": 1}}}
    ways["qualities"]["best"] = teacher.named_sampling["best"]
    return replace(config, guidance_range=GUIDANCE_RANGE, **ways)


class Jumps(NamedTuple):
    """What is drawn for each image, [B]."""

    t: Tensor
    s: Tensor
    r: Tensor
    w: Tensor


def draw_jumps(count: int, generator: torch.Generator) -> Jumps:
    """DENOISING of them have r = t."""
    uniform = torch.rand(4, count, generator=generator)
    denoised = round(DENOISING * count)
    place = torch.randint(1, TEACHER_STEPS + 1, (count,), generator=generator)
    t = (place - torch.where(uniform[0] < 0.5, 0.0, uniform[1])) / TEACHER_STEPS  # half of them on the grid
    if denoised:
        t[-denoised:] = sample_noise_times(denoised, generator)
    t = t.clamp(min=1e-3)
    s = (t - 1 / TEACHER_STEPS).clamp(min=0)
    r = torch.where(uniform[2] < TO_THE_END, 0.0, (uniform[2] - TO_THE_END) / (1 - TO_THE_END) * s)
    if denoised:
        r[-denoised:] = t[-denoised:]
    low, high = GUIDANCE_RANGE
    order = torch.randperm(count, generator=generator)  # else the last process would get all that do not jump
    return Jumps(t[order], s[order], r[order], low + (high - low) * uniform[3])


def few_step_loss(
    student: nn.Module,
    teacher: nn.Module,
    batch: tuple[Tensor, Tensor, Tensor],
    jumps: Jumps,
    interval: tuple[float, float],
) -> Tensor:
    """Pseudo-Huber distance between D and where it should be; a scalar.

    batch: x0 [B, C, H, W], labels [B], eps [B, C, H, W]; the null class goes without guidance. interval: of noise
    times, in which the teacher's steps are guided.
    """
    x0, labels, eps = batch
    t, s, r, w = (value.to(x0.device) for value in jumps)
    null = int(teacher.num_classes)  # pyright: ignore
    w = torch.where(labels == null, 1.0, w)
    x = wide(1 - t) * x0 + wide(t) * eps
    with torch.no_grad():
        inside = (interval[0] <= t) & (t <= interval[1]) | (r >= t)
        denoised = guided(teacher, x, t, labels, torch.where(inside, w, 1.0), null)
        goal = where_to(student, x, denoised, labels, (t, s, r, w))
    error = (call(student, x, t, labels, r, w) - goal).flatten(1)
    bend = HUBER * math.sqrt(error.shape[1])
    return ((error.square().sum(1) + bend**2).sqrt() - bend).mean()


def where_to(student: nn.Module, x: Tensor, denoised: Tensor, labels: Tensor, jumps: tuple[Tensor, ...]) -> Tensor:
    """What D should be: the teacher's denoised image where r = t, else what leads over x_s to x_r. [B, C, H, W]."""
    t, s, r, w = jumps
    on_path = jump(x, denoised, t, s)
    further = jump(on_path, call(student, on_path, s.clamp(min=1e-3), labels, r, w), s.clamp(min=1e-3), r)
    x_r = torch.where(wide(r < s), further, on_path)
    kept = wide(r / t)
    return torch.where(wide(r < t), (x_r - kept * x) / (1 - kept).clamp(min=1e-3), denoised)


def jump(x: Tensor, denoised: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """From noise time t to r, both [B]."""
    kept = wide(r / t)
    return kept * x + (1 - kept) * denoised


def guided(teacher: nn.Module, x: Tensor, t: Tensor, labels: Tensor, w: Tensor, null: int) -> Tensor:
    """The teacher's denoised image, with a second row only where it is needed."""
    denoised = call(teacher, x, t, labels)
    steered = (w != 1).nonzero().flatten()
    if len(steered):
        plain = call(teacher, x[steered], t[steered], torch.full_like(labels[steered], null))
        denoised = denoised.index_copy(0, steered, plain + wide(w[steered]) * (denoised[steered] - plain))
    return denoised.clamp(-1, 1)


def call(model: nn.Module, x: Tensor, t: Tensor, labels: Tensor, *others: Tensor) -> Tensor:
    """others: r and w, for a network that takes them."""
    more = (others[0] * NUM_TIMESTEPS, others[1]) if others else ()
    return model(x, t * NUM_TIMESTEPS, labels, *more).float()


def wide(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return values[:, None, None, None]
