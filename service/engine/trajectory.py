"""What each step of a request did, for requests that ask for it: x, the denoised image and the step's numbers.

x and the sampler's history are copied out of their slots after the step, in launches of their own, which only
steps with such a request have. The noise is not copied: it can be drawn again from the request (models/noise.py).
"""

import numpy as np
import torch
from torch import Tensor

from kernels.sampler_step import NUM_COEFFICIENTS
from models.schedule import NUM_TIMESTEPS
from service.engine.canvas import send
from service.engine.latents import LatentPool
from service.engine.plan import COEFFICIENTS, INPUTS, LEVELS, PREVIEW
from service.engine.slot_table import TaskArrays
from service.wire.messages import TrajectoryPoint

NOISE_SCALE = COEFFICIENTS.start + NUM_COEFFICIENTS - 2  # s of w, p, q, a, b, c, s, clamp


def copy_states(pool: LatentPool, step: TaskArrays) -> Tensor | None:
    """x and history of the images step.recorded, [t, 2, C, H, W] float32 on the device, or None."""
    if not step.recorded:
        return None
    slots = send(step.slots[step.recorded], pool.x.device)
    return torch.stack([pool.x[slots], pool.history[slots]], dim=1).contiguous()


def point(step: TaskArrays, place: int, x: np.ndarray, history: np.ndarray) -> TrajectoryPoint:
    """Of the image at this place of the step; x and history, [C, H, W] float32, are those behind it.

    The denoised image is what a preview shows: for most samplers the history, for ab2 made of both.
    """
    numbers = step.numbers[place]
    of_x, of_d = numbers[PREVIEW]
    time, noise_scale = float(numbers[INPUTS[0]]) / NUM_TIMESTEPS, float(numbers[NOISE_SCALE])
    alpha, sigma = numbers[LEVELS].tolist()
    denoised = of_x * x + of_d * history
    index, done = step.tasks[place].index, int(step.steps[place])
    return TrajectoryPoint(index, done, x.tobytes(), denoised.tobytes(), time, (alpha, sigma), noise_scale)
