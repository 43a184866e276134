"""An exact denoiser: data whose pixels are N(mean, std^2), so E[x0 | x] has a closed form. All in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.samplers import SamplerTable
from models.schedule import NUM_TIMESTEPS, NoiseSchedule, Prediction

Array = np.ndarray
Denoiser = Callable[[Array, float, float], Array]  # x, alpha, sigma -> E[x0 | x]


@dataclass(frozen=True)
class Gaussian:
    """mean and std: one number a pixel, [E]."""

    mean: Array
    std: Array

    def denoise(self, x: Array, alpha: float, sigma: float) -> Array:
        variance = alpha**2 * self.std**2 + sigma**2
        return self.mean + alpha * self.std**2 / variance * (x - alpha * self.mean)

    def solve_ode(self, x: Array, start: tuple[float, float], end: tuple[float, float]) -> Array:
        """The probability-flow ODE between two (alpha, sigma): it keeps the quantile of every pixel."""
        before, after = (np.hypot(alpha * self.std, sigma) for alpha, sigma in (start, end))
        return end[0] * self.mean + after / before * (x - start[0] * self.mean)


INSIDE = Gaussian(np.linspace(-0.4, 0.5, 6), np.linspace(0.2, 0.7, 6))
OUTSIDE = Gaussian(np.array([-1.2, 0.9, 1.5]), np.array([0.3, 0.4, 0.2]))  # a clamp cuts these images


def predict(prediction: Prediction, x: Array, x0: Array, alpha: float, sigma: float) -> Array:
    """What a network of this kind says when it means x0."""
    eps = (x - alpha * x0) / sigma
    return {"eps": eps, "v": alpha * eps - sigma * x0, "x0": x0, "flow": eps - x0}[prediction]


def noise_times(table: SamplerTable) -> Array:
    """u before every step and after the last, [num_steps + 1]."""
    return np.append(table.rows[:, 0] / NUM_TIMESTEPS, 0.0)


def run_table(
    table: SamplerTable, schedule: NoiseSchedule, prediction: Prediction, denoise: Denoiser, x: Array, noise: Array
) -> Array:
    """The state after every step, [num_steps, E]; noise is [num_steps, E]."""
    states, previous = [], np.zeros_like(x)
    for (t, p, q, a, b, c, s), z in zip(table.rows, noise, strict=True):
        alpha, sigma = (float(f(np.array(t / NUM_TIMESTEPS))) for f in (schedule.alpha, schedule.sigma))
        d = p * x + q * predict(prediction, x, denoise(x, alpha, sigma), alpha, sigma)
        d = d.clip(-1, 1) if table.clamp else d
        x, previous = a * x + b * d + c * previous + s * z, d
        states.append(x)
    return np.stack(states)
