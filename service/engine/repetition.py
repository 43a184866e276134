"""Tests at start-up whether the deterministic mode works on this machine.

Libraries choose their algorithm by the row count, so equal bits need equal counts: every step with a deterministic
image is padded to the same one. No library documents that a row is then independent of its place and neighbours, so
that is tested.
"""

import torch
from torch import Tensor

from service.engine.plan import compile_plan
from service.engine.request import Request
from service.engine.runner import ModelRunner
from service.wire.messages import SamplingParams

STEPS = 3  # the first, one in between, the last
SEED = 7
MULTIPLE = 8  # float32 products on CPUs give their last few rows to another loop: 6 of 6 rows, but none of 8


def find_fixed_rows(runner: ModelRunner, cap: int) -> int | None:
    """Set the row count of the runner's deterministic steps: the cap or a little more; None where none works."""
    for rows in dict.fromkeys((cap, -(-cap // MULTIPLE) * MULTIPLE)):
        runner.fixed_rows = rows
        if runner.runs(rows) and repeats_itself(runner):
            return rows
    runner.fixed_rows = cap
    return None


def repeats_itself(runner: ModelRunner) -> bool:
    """Compare an image alone with itself in full steps, bit by bit: at every place, and beside others."""
    places = min(runner.fixed_rows, len(runner.pool))
    scale = runner.config.two_row_guidance
    (plain,), (guided,) = _latents(runner, [SEED], 1.0), _latents(runner, [SEED], scale)
    everywhere = _latents(runner, [SEED] * places, 1.0)
    *_, beside = _latents(runner, [*range(100, 99 + max(1, places // 2)), SEED], scale)
    return all(torch.equal(plain, latent) for latent in everywhere) and torch.equal(guided, beside)


def _latents(runner: ModelRunner, seeds: list[int], guidance: float) -> Tensor:
    """Final latents [n, C, H, W], by every kind of arithmetic: noise and history."""
    params = SamplingParams("", 0, STEPS, "dpmpp_2m_sde", guidance, (0.0, 1.0), tuple(seeds), deterministic=True)
    tasks = Request("", params, compile_plan(runner.config, params)).tasks
    for step in range(STEPS):
        for slot, task in enumerate(tasks):
            task.slot, task.step = slot, step
        runner.execute(tasks)
    return runner.pool.x[: len(tasks)].clone()
