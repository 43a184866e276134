"""From sampling parameters to the numbers that the runner gathers each step."""

from collections import Counter
from functools import lru_cache
from itertools import accumulate

import numpy as np

from kernels.sampler_step import NUM_COEFFICIENTS
from models.checkpoint import ModelConfig
from models.samplers import SamplerTable, T
from models.sampling import Guidance, step_coefficients
from service.engine.request import Plan
from service.wire.messages import SamplingParams

NUM_PREVIEW = 2  # factors of x and d in a picture: see SamplerTable.preview
COEFFICIENTS = slice(1, 1 + NUM_COEFFICIENTS)
PREVIEW = slice(COEFFICIENTS.stop, COEFFICIENTS.stop + NUM_PREVIEW)
INPUTS = [0, PREVIEW.stop, PREVIEW.stop + 1]  # of the network: t, r, w
LEVELS = slice(PREVIEW.stop + 2, PREVIEW.stop + 4)  # alpha and sigma of x before the step
NUM_NUMBERS = LEVELS.stop


def compile_plan(config: ModelConfig, params: SamplingParams) -> Plan:
    """Its numbers are [num_steps, NUM_NUMBERS] float32: timestep, coefficients of kernels.sampler_step, preview.

    Behind them stand what only few-step networks take: the timestep to which they jump, and the guidance scale. The
    last two are for images that requests bring along.

    Raises:
        ValueError: the model has no such sampler.
    """
    return compile_plans(config, params)[0]


def compile_plans(config: ModelConfig, params: SamplingParams) -> tuple[Plan, ...]:
    """One of each image where params has mixtures, else one for all; as compile_plan."""
    guidance = guidance_of(config, params)
    table = config.table(params.sampler, params.num_steps, params.spacing, params.strength)
    return tuple(_compile(table, guidance, max(1, len(mixture))) for mixture in params.mixtures or [()])


def guidance_of(config: ModelConfig, params: SamplingParams) -> Guidance:
    negative = params.negative_label is not None
    return Guidance(params.guidance_scale, *params.guidance_interval, config.guidance_range, negative)


@lru_cache(maxsize=1024)
def _compile(table: SamplerTable, guidance: Guidance, classes: int) -> Plan:
    timesteps, steps = table.rows[:, T], range(len(table))
    scales = [guidance.split(t, r) for t, r in zip(timesteps.tolist(), table.jumps.tolist(), strict=True)]
    coefficients = [step_coefficients(table, step, guidance) for step in steps]
    inputs = [table.jumps, [given for _, given in scales]]
    numbers = np.column_stack([timesteps, coefficients, table.preview, *inputs, table.levels]).astype(np.float32)
    rows = tuple(classes + (between != 1) for between, _ in scales)
    remaining = tuple(accumulate(reversed(rows), initial=0))[::-1]
    return Plan(rows, remaining, dict(Counter(rows)), numbers, classes)
