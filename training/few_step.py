"""Few-step tuning: distil many guided steps of a teacher into one or two jumps of a student.

D(x_t, t, r, w) is the student. With r = t it denoises as the guided teacher does, so that a guided step of any
sampler costs one row (Meng et al. 2022, arXiv:2210.03142). With r = 0 it jumps from x_t to the image. It learns the
jump in two ways:

- Consistency (Song et al. 2023, arXiv:2303.01469): the jump from x_t and the jump from the point after one guided
  Euler step of the teacher must end in one image.
- Distribution matching (Yin et al. 2023, arXiv:2311.18828), for the first jump, from pure noise, and for the second
  one, from its image with fresh noise. A critic is trained to denoise the student's images. The student's images
  are moved along the difference between the teacher's and the critic's denoised images. Consistency alone is worse,
  because a small network cannot learn the whole path. Matching only asks for the right distribution, whatever the
  noise. The two jumps draw two distributions, so r tells the critic the noise time at which the jump began.

The teacher is the network that the run starts from. The guidance scale w is an input, so one network serves all.

Letters: B batch, C x H x W the image; noise times t, r, s lie in 0..1 here, on 0..1000 in the network.
"""

import copy
import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Size, Tensor, nn

from models.checkpoint import ModelConfig
from models.schedule import MIN_LOSS_SIGMA, NUM_TIMESTEPS, sample_noise_times

GUIDANCE_RANGE = (1.0, 3.0)  # of w in training
TEACHER_STEPS = 16  # Euler steps of the teacher from noise to image
KINDS = 4  # of every four images one trains denoising, two consistency, and one distribution matching
SECOND_JUMPS = 0.25  # share of second jumps in matching; more made one-row samples worse (docs/experiments.md)
RESTARTS = (0.6, 0.85)  # noise times of second jumps; two steps of the spacing "shifted" are 1 and 0.75
UNGUIDED = 0.4  # share of w = 1 in denoising, which samplers ask for outside of their guidance interval
HUBER = 0.03  # times the root of the number of elements: smaller errors count squared (arXiv:2310.14189)
LEAST_DISTANCE = 0.02  # lower limit of the mean absolute distance that normalises the matching gradient


def few_step_config(config: ModelConfig, teacher: ModelConfig) -> ModelConfig:
    """config with the sampling of a tuned checkpoint: two jumps by default, one as draft, the teacher's as best."""
    jumps = {"sampler": "consistency", "steps": 2, "spacing": "shifted"}
    ways = {"sampling": teacher.default_sampling | jumps, "qualities": {"draft": {"steps": 1}}}
    ways["qualities"]["best"] = teacher.named_sampling["best"]
    return replace(config, guidance_range=GUIDANCE_RANGE, **ways)


class Draws(NamedTuple):
    """Random numbers for each image, [B] but fresh."""

    t: Tensor  # noise time
    r: Tensor  # t to denoise, 0 to jump
    w: Tensor  # guidance scale
    matched: Tensor  # bool: the jump is trained by distribution matching
    tau: Tensor  # noise time at which teacher and critic denoise its image
    fresh: Tensor  # [B, C, H, W] noise for that


def draw(images: Size, generator: torch.Generator) -> Draws:
    """Draw for a batch of shape `images` (B, C, H, W). The kinds alternate, so that every process gets all."""
    count = images[0]
    kind = torch.arange(count) % KINDS
    first, second, third = torch.rand(3, count, generator=generator)
    place = torch.randint(1, TEACHER_STEPS + 1, (count,), generator=generator)
    on_grid = (place - torch.where(first < 0.5, 0.0, second)) / TEACHER_STEPS  # half of them between grid points
    denoised = sample_noise_times(count, generator)[torch.randperm(count, generator=generator)]
    low, high = RESTARTS
    matched = torch.where(first < SECOND_JUMPS, low + (high - low) * second, 1.0)
    t = torch.where(kind == 0, denoised, torch.where(kind == 3, matched, on_grid)).clamp(min=1e-3)
    least, most = GUIDANCE_RANGE
    w = least + (most - least) * third**1.5  # small scales more often, as in most requests
    w = torch.where((kind == 0) & (second < UNGUIDED), 1.0, w)
    tau = torch.sigmoid(torch.randn(count, generator=generator) + 0.7).clamp(0.02, 0.98)
    return Draws(t, torch.where(kind == 0, t, 0.0), w, kind == 3, tau, torch.randn(images, generator=generator))


class Tuning(nn.Module):
    """The student and its critic, which train together; the teacher stays as it is.

    Args:
        student: a few-step network with the teacher's weights.
        interval: of noise times, in which the teacher's steps are guided.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, interval: tuple[float, float]):
        super().__init__()
        self.student, self.critic = student, copy.deepcopy(student)
        self._teacher = [teacher.requires_grad_(False).eval()]  # in a list: no part of the state
        self._interval = interval

    @property
    def teacher(self) -> nn.Module:
        return self._teacher[0]

    def forward(self, batch: tuple[Tensor, Tensor, Tensor], draws: Draws) -> Tensor:
        """The sum of both losses, a scalar.

        batch: x0 [B, C, H, W], labels [B], eps [B, C, H, W]; the null class goes without guidance.
        """
        x0, labels, eps = batch
        t, r, w, matched, tau, fresh = (value.to(x0.device) for value in draws)
        w = torch.where(labels == self.null, 1.0, w)
        again = (matched & (t < 1)).nonzero().flatten()
        if len(again):
            x0, eps = self.restarted(x0, eps, again, labels[again], w[again])
        x = wide(1 - t) * x0 + wide(t) * eps
        drawn = call(self.student, x, t, labels, r, w)
        near, far = (~matched).nonzero().flatten(), matched.nonzero().flatten()
        goal = self.goal(x[near], t[near], r[near], labels[near], w[near])
        matching = self.matching(drawn[far], fresh[far], tau[far], t[far], labels[far], w[far])
        error = drawn[near] - goal
        velocity = error / wide(t[near].clamp(min=MIN_LOSS_SIGMA))  # the weighting of ordinary training
        error = torch.where(wide(r[near] >= t[near]), velocity, error)
        return (huber(error).sum() + matching.sum()) / len(x0)

    @property
    def null(self) -> int:
        return int(self.teacher.num_classes)  # pyright: ignore

    @torch.no_grad()
    def goal(self, x: Tensor, t: Tensor, r: Tensor, labels: Tensor, w: Tensor) -> Tensor:
        """Target of D: the guided denoised image where r = t, else the jump from the next point of the path."""
        denoised = self.guided(x, t, labels, w, always=r >= t)
        s = (t - 1 / TEACHER_STEPS).clamp(min=0)
        on_path = wide(s / t) * x + wide(1 - s / t) * denoised
        end = call(self.student, on_path, s.clamp(min=1e-3), labels, torch.zeros_like(s), w)
        return torch.where(wide(r >= t), denoised, torch.where(wide(s > 0), end, on_path))

    @torch.no_grad()
    def restarted(self, x0: Tensor, eps: Tensor, again: Tensor, labels: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and eps for second jumps: images `again` [A] become the student's first jumps, with other noise."""
        start = torch.ones_like(w)
        jumped = call(self.student, eps[again], start, labels, 0 * start, w).clamp(-1, 1)
        return x0.index_copy(0, again, jumped), eps.index_copy(0, again, eps.roll(1, 0)[again])

    def matching(
        self, drawn: Tensor, fresh: Tensor, tau: Tensor, began: Tensor, labels: Tensor, w: Tensor
    ) -> Tensor:
        """Matching loss of the student plus denoising loss of the critic, [B].

        The student's gradient is the normalised difference between the critic's and the teacher's denoised images.
        began: noise times at which the jumps began.
        """
        image = drawn.detach().clamp(-1, 1)
        x = wide(1 - tau) * image + wide(tau) * fresh
        expected = call(self.critic, x, tau, labels, began, w)
        with torch.no_grad():
            wanted = self.guided(x, tau, labels, w)
            distance = (drawn - wanted).abs().mean((1, 2, 3), keepdim=True).clamp(min=LEAST_DISTANCE)
            goal = drawn - (expected - wanted) / distance
        size = math.sqrt(drawn.shape[1:].numel())
        student = (drawn - goal).square().flatten(1).sum(1) / (2 * size)
        critic = ((expected - image) / wide(tau.clamp(min=MIN_LOSS_SIGMA))).square().flatten(1).mean(1)
        return student + critic

    def guided(self, x: Tensor, t: Tensor, labels: Tensor, w: Tensor, always: Tensor | bool = False) -> Tensor:
        """The teacher's guided denoised image; the null class is evaluated only where guidance needs it."""
        low, high = self._interval
        inside = (low <= t) & (t <= high) | always
        denoised = call(self.teacher, x, t, labels)
        steered = (inside & (w != 1)).nonzero().flatten()
        if len(steered):
            null = torch.full_like(labels[steered], self.null)
            plain = call(self.teacher, x[steered], t[steered], null)
            both = plain + wide(w[steered]) * (denoised[steered] - plain)
            denoised = denoised.index_copy(0, steered, both)
        return denoised.clamp(-1, 1)


def huber(error: Tensor) -> Tensor:
    """Pseudo-Huber norm of each image, [B]."""
    bend = HUBER * math.sqrt(error.shape[1:].numel())
    return (error.flatten(1).square().sum(1) + bend**2).sqrt() - bend


def call(model: nn.Module, x: Tensor, t: Tensor, labels: Tensor, *others: Tensor) -> Tensor:
    """others: r and w, for a network that takes them."""
    more = (others[0] * NUM_TIMESTEPS, others[1]) if others else ()
    return model(x, t * NUM_TIMESTEPS, labels, *more).float()


def wide(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return values[:, None, None, None]
