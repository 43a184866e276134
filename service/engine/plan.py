"""From sampling parameters to the numbers that the runner gathers each step."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np

from kernels.sampler_step import NUM_COEFFICIENTS
from models.checkpoint import ModelConfig
from models.samplers import Guidance, SamplerTable, T, step_coefficients
from service.wire.messages import SamplingParams

LOOK = 2  # factors of x and d in the image that leaves the device
COEFFICIENTS, LOOKS = slice(1, 1 + NUM_COEFFICIENTS), slice(1 + NUM_COEFFICIENTS, 1 + NUM_COEFFICIENTS + LOOK)
INPUTS = [0, LOOKS.stop, LOOKS.stop + 1]  # of the network: t, r, w
NUM_NUMBERS = 1 + NUM_COEFFICIENTS + LOOK + 2


@dataclass(frozen=True)
class StepPlan:
    """A compiled sampler table with its guidance; shared by all requests that ask for the same."""

    # [num_steps, NUM_NUMBERS] float32: timestep, the coefficients of kernels.sampler_step, look, and what only
    # few-step networks take: the timestep to which they jump, and the guidance scale
    numbers: np.ndarray
    rows: tuple[int, ...]  # forward rows of each step
    remaining: tuple[int, ...]  # rows from each step to the end; one longer than rows
    steps_by_rows: dict[int, int]  # how many steps have 1 row, and how many 2


def compile_plan(config: ModelConfig, params: SamplingParams) -> StepPlan:
    """Raises ValueError where the model has no such sampler."""
    guidance = Guidance(params.guidance_scale, *params.guidance_interval, config.guidance_range)
    return _compile(config.table(params.sampler, params.num_steps, params.spacing), guidance)


@lru_cache(maxsize=1024)
def _compile(table: SamplerTable, guidance: Guidance) -> StepPlan:
    timesteps, steps = table.rows[:, T], range(len(table))
    scales = [guidance.split(t, r) for t, r in zip(timesteps.tolist(), table.jumps.tolist(), strict=True)]
    coefficients = [step_coefficients(table, step, guidance) for step in steps]
    inputs = [table.jumps, [given for _, given in scales]]
    numbers = np.column_stack([timesteps, coefficients, table.look, *inputs]).astype(np.float32)
    rows = tuple(1 + (between != 1) for between, _ in scales)
    remaining = tuple(accumulate(reversed(rows), initial=0))[::-1]
    return StepPlan(numbers, rows, remaining, dict(Counter(rows)))
