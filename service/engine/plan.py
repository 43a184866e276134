"""From sampling parameters to the numbers that the runner gathers each step."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np

from kernels.sampler_step import NUM_COEFFICIENTS
from models.checkpoint import ModelConfig
from models.samplers import Guidance, T, build_table, step_coefficients
from models.schedule import NoiseSchedule, Prediction
from service.wire.messages import SamplingParams

LOOK = 2  # factors of x and d in the image that leaves the device
NUM_NUMBERS = 1 + NUM_COEFFICIENTS + LOOK


@dataclass(frozen=True)
class StepPlan:
    """A compiled sampler table with its guidance; shared by all requests that ask for the same."""

    # [num_steps, NUM_NUMBERS] float32: timestep, the coefficients of kernels.sampler_step, look
    numbers: np.ndarray
    rows: tuple[int, ...]  # forward rows of each step
    remaining: tuple[int, ...]  # rows from each step to the end; one longer than rows
    steps_by_rows: dict[int, int]  # how many steps have 1 row, and how many 2


def compile_plan(config: ModelConfig, params: SamplingParams) -> StepPlan:
    """Raises ValueError where the model has no such sampler."""
    guidance = Guidance(params.guidance_scale, *params.guidance_interval)
    return _compile(config.schedule, config.prediction, params.sampler, params.num_steps, params.spacing, guidance)


@lru_cache(maxsize=1024)
def _compile(
    schedule: str, prediction: str, sampler: str, num_steps: int, spacing: str, guidance: Guidance
) -> StepPlan:
    table = build_table(NoiseSchedule(schedule), Prediction(prediction), sampler, num_steps, spacing=spacing)
    coefficients = [step_coefficients(table, step, guidance) for step in range(num_steps)]
    numbers = np.column_stack([table.rows[:, T], coefficients, table.look]).astype(np.float32)
    rows = tuple(1 + guidance.active(t) for t in table.rows[:, T].tolist())  # float64, as step_coefficients asks
    remaining = tuple(accumulate(reversed(rows), initial=0))[::-1]
    return StepPlan(numbers, rows, remaining, dict(Counter(rows)))
