"""From sampling parameters to the numbers that the runner gathers each step."""

from collections import Counter
from functools import lru_cache
from itertools import accumulate

import numpy as np

from kernels.sampler_step import NUM_COEFFICIENTS
from models.checkpoint import ModelConfig
from models.samplers import Guidance, T, build_table, step_coefficients
from models.schedule import NoiseSchedule, Prediction
from service.engine.request import Plan
from service.wire.messages import SamplingParams

LOOK = 2  # factors of x and d in the image that leaves the device
NUM_NUMBERS = 1 + NUM_COEFFICIENTS + LOOK


def compile_plan(config: ModelConfig, params: SamplingParams) -> Plan:
    """Its numbers are [num_steps, NUM_NUMBERS] float32: timestep, the coefficients of kernels.sampler_step, look.

    Raises:
        ValueError: the model has no such sampler.
    """
    guidance = Guidance(params.guidance_scale, *params.guidance_interval)
    return _compile(config.schedule, config.prediction, params.sampler, params.num_steps, guidance)


@lru_cache(maxsize=1024)
def _compile(schedule: str, prediction: str, sampler: str, num_steps: int, guidance: Guidance) -> Plan:
    table = build_table(NoiseSchedule(schedule), Prediction(prediction), sampler, num_steps)
    coefficients = [step_coefficients(table, step, guidance) for step in range(num_steps)]
    numbers = np.column_stack([table.rows[:, T], coefficients, table.look]).astype(np.float32)
    rows = tuple(1 + guidance.active(t) for t in table.rows[:, T].tolist())  # float64, as step_coefficients asks
    remaining = tuple(accumulate(reversed(rows), initial=0))[::-1]
    return Plan(rows, remaining, dict(Counter(rows)), numbers)
