"""Samplers as tables.

Every one-evaluation linear multistep sampler is, per step and per image,

    M  = M_uncond + w * (M_cond - M_uncond)
    d  = p * x + q * M
    x' = a * x + b * d + c * d_prev + s * z

so a sampler compiles once, in float64, to rows t, p, q, a, b, c, s. d is the denoised image x0; only for ab2 it is
the velocity, which is why ab2 cannot clamp. Solvers with several evaluations a step (Heun, single-step
DPM-Solver) do not fit. A row does not depend on the batch, so images with different tables share one forward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from models.schedule import NUM_TIMESTEPS, NoiseSchedule, Prediction
from models.spacings import SPACINGS

T, P, Q, A, B, C, S = range(7)  # the columns of a table
MIN_STRENGTH = 0.01  # less noise than a byte's rounding changes nothing


@dataclass(frozen=True, eq=False)
class SamplerTable:
    """One row a step; compiled by build_table, which gives the same object for the same settings."""

    rows: np.ndarray  # [num_steps, 7] float64: t, p, q, a, b, c, s
    preview: np.ndarray  # [num_steps, 2] float64: preview[i] @ (x, d) after step i shows the denoised image so far
    clamp: bool  # whether d is clamped to [-1, 1]
    jumps: np.ndarray  # [num_steps] float64: r, the timestep to which d leads at once; mostly t itself, or 0
    levels: np.ndarray  # [num_steps, 2] float64: alpha and sigma of x before each step
    strength: float = 1.0  # noise time at which it starts; below 1 it needs an image

    def __len__(self) -> int:
        return len(self.rows)


@lru_cache(maxsize=1024)
def build_table(
    schedule: NoiseSchedule,
    prediction: Prediction,
    sampler: str,
    num_steps: int,
    *,
    spacing: str = "trailing",
    eta: float | None = None,
    clamp: bool = True,
    few_step: bool = False,
    strength: float = 1.0,
) -> SamplerTable:
    """Compile a sampler.

    Args:
        sampler: a key of SAMPLERS.
        num_steps: network evaluations, 1..1000.
        spacing: a key of SPACINGS.
        eta: 0..1, how much of the noise is fresh; default 0 for ddim, 1 for ddpm and dpmpp_2m_sde.
        clamp: clamp the denoised image to [-1, 1] (not for ab2).
        few_step: whether the network takes r, which consistency needs.
        strength: 0.01..1, of the noise that an image gets to start from (Meng et al. 2021, arXiv:2108.01073). All
            steps are taken, between noise time strength and 0; 1 starts from pure noise.

    Raises:
        ValueError: an unknown name, a value out of range, or a combination that does not exist.
    """
    _check_table(schedule, sampler, num_steps, spacing, eta, few_step)
    if not MIN_STRENGTH <= strength <= 1:
        raise ValueError(f"strength must lie in {MIN_STRENGTH}..1, got {strength}")
    u = np.append(strength * SPACINGS[spacing](schedule, num_steps), 0.0)  # [num_steps + 1], noise to clean
    grid = Grid(schedule, u, schedule.alpha(u), schedule.sigma(u))
    rows = _rows(grid, prediction, sampler, STOCHASTIC.get(sampler, 0.0) if eta is None else eta)
    preview, jumps = grid.preview(sampler), NUM_TIMESTEPS * u[:-1] * (sampler not in JUMPING)
    levels = np.column_stack([grid.alpha, grid.sigma])[:-1]
    for shared in (rows, preview, jumps, levels):  # by every request with these settings
        shared.setflags(write=False)
    return SamplerTable(rows, preview, clamp and sampler != "ab2", jumps, levels, strength)


def _rows(grid: "Grid", prediction: Prediction, sampler: str, eta: float) -> np.ndarray:
    rows = np.zeros((len(grid.u) - 1, 7))
    rows[:, T] = grid.u[:-1] * NUM_TIMESTEPS
    pq = [prediction.to_x0(a, s) for a, s in zip(grid.alpha[:-1], grid.sigma[:-1], strict=True)]
    rows[:, [P, Q]] = pq if sampler != "ab2" else [grid.to_velocity(i, *pair) for i, pair in enumerate(pq)]
    for i in range(len(rows)):
        rows[i, [A, B, C, S]] = SAMPLERS[sampler](grid, i, eta)
    return rows


def _check_table(
    schedule: NoiseSchedule, sampler: str, num_steps: int, spacing: str, eta: float | None, few_step: bool
) -> None:
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}: use one of {', '.join(SAMPLERS)}")
    if spacing not in SPACINGS:
        raise ValueError(f"unknown spacing {spacing!r}: use one of {', '.join(SPACINGS)}")
    if not 1 <= num_steps <= NUM_TIMESTEPS:
        raise ValueError(f"steps must lie in 1..{NUM_TIMESTEPS}, got {num_steps}")
    if sampler in JUMPING and not few_step:
        raise ValueError(f"{sampler} needs a network that was tuned for few steps: use another sampler")
    if sampler == "euler" and not schedule.is_flow:
        raise ValueError("euler integrates the flow schedule: use ddim, which is its equal on this model")
    if eta is not None and (sampler not in STOCHASTIC or not 0 <= eta <= 1):
        raise ValueError(f"eta must lie in 0..1 and belongs to {', '.join(STOCHASTIC)}")


@dataclass(frozen=True)
class Grid:
    """The noise times of one table, with the schedule evaluated on them; index i is the state before step i."""

    schedule: NoiseSchedule
    u: np.ndarray  # [num_steps + 1]
    alpha: np.ndarray
    sigma: np.ndarray

    def decay(self, i: int) -> float:
        """exp(-h) with h = lambda[i+1] - lambda[i]; written without logarithms, so alpha = 0 and sigma = 0 work."""
        return self.sigma[i + 1] * self.alpha[i] / (self.sigma[i] * self.alpha[i + 1])

    def second_order(self, i: int) -> float:
        """1 / r with r = h[i-1] / h[i]; 0 where the multistep formula falls back to first order.

        That is the first step, the last one (h infinite), and the step after a first step from alpha = 0.
        """
        if i == 0 or self.sigma[i + 1] == 0 or self.alpha[i - 1] == 0:
            return 0.0
        return float(np.log(self.decay(i)) / np.log(self.decay(i - 1)))

    def velocity_time(self, i: int) -> float:
        """The variable in which dx/dtau is the velocity: u for flow, the angle of (alpha, sigma) for VP."""
        return float(self.u[i] if self.schedule.is_flow else np.arctan2(self.sigma[i], self.alpha[i]))

    def preview(self, sampler: str) -> np.ndarray:
        """SamplerTable.preview. d is the denoised image, but for ab2 it is the velocity v. Then x - u v (flow) or
        alpha x - sigma v (VP) is the denoised image at the state after the step. The last state is the image.
        """
        preview = np.tile([0.0, 1.0], (len(self.u) - 1, 1))
        if sampler == "ab2":
            pair = (np.ones_like(self.u), -self.u) if self.schedule.is_flow else (self.alpha, -self.sigma)
            preview = np.stack(pair, axis=1)[1:]
        preview[-1] = 1.0, 0.0
        return preview

    def to_velocity(self, i: int, p: float, q: float) -> tuple[float, float]:
        """(p, q) of the velocity from those of x0: (x - x0) / u for flow, (alpha x - x0) / sigma for VP."""
        alpha = 1.0 if self.schedule.is_flow else self.alpha[i]
        return (alpha - p) / self.sigma[i], -q / self.sigma[i]


def ddim(grid: Grid, i: int, eta: float) -> tuple[float, float, float, float]:
    """DDIM (Song et al. 2020, equation 12) for any alpha and sigma; eta = 1 is the ancestral DDPM posterior.

    With alpha_ts = alpha_t / alpha_s the variance of q(x_s | x_t, x0) is sigma_s^2 (1 - alpha_ts^2 sigma_s^2 /
    sigma_t^2) (Kingma et al. 2021, appendix A); eta scales its root.
    """
    alpha, sigma, alpha_next, sigma_next = grid.alpha[i], grid.sigma[i], grid.alpha[i + 1], grid.sigma[i + 1]
    fresh = eta * sigma_next * np.sqrt(max(0.0, 1 - (alpha / alpha_next * sigma_next / sigma) ** 2))
    kept = np.sqrt(sigma_next**2 - fresh**2) / sigma  # x_s = alpha_s x0 + sqrt(..) eps + fresh z
    return kept, alpha_next - kept * alpha, 0.0, fresh


def euler(grid: Grid, i: int, eta: float) -> tuple[float, float, float, float]:
    """Euler on the flow: x' = x + (u' - u) (x - x0) / u."""
    ratio = grid.u[i + 1] / grid.u[i]
    return ratio, 1 - ratio, 0.0, 0.0


def dpmpp_2m(grid: Grid, i: int, eta: float) -> tuple[float, float, float, float]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2); first order at both ends."""
    b = grid.alpha[i + 1] * (1 - grid.decay(i))
    half = grid.second_order(i) / 2
    return grid.sigma[i + 1] / grid.sigma[i], b * (1 + half), -b * half, 0.0


def dpmpp_2m_sde(grid: Grid, i: int, eta: float) -> tuple[float, float, float, float]:
    """SDE-DPM-Solver++(2M), midpoint form (Lu et al. 2022, section 5, with k-diffusion's eta)."""
    decay = grid.decay(i)
    noise_decay = decay**eta
    b = grid.alpha[i + 1] * (1 - decay * noise_decay)
    half = grid.second_order(i) / 2
    fresh = grid.sigma[i + 1] * np.sqrt(1 - noise_decay**2)
    return grid.sigma[i + 1] / grid.sigma[i] * noise_decay, b * (1 + half), -b * half, fresh


def ab2(grid: Grid, i: int, eta: float) -> tuple[float, float, float, float]:
    """Two-step Adams-Bashforth with variable steps on the probability-flow ODE; the first step is Euler's.

    On a VP schedule the last step is x' = alpha x - sigma v, the denoised image, as the other samplers end: there
    the path is a quarter circle, of which one or two straight steps left noise even with a perfect network.
    """
    if grid.sigma[i + 1] == 0 and not grid.schedule.is_flow:
        return grid.alpha[i], -grid.sigma[i], 0.0, 0.0
    h = grid.velocity_time(i + 1) - grid.velocity_time(i)
    if i == 0:
        return 1.0, h, 0.0, 0.0
    half = h / (grid.velocity_time(i) - grid.velocity_time(i - 1)) / 2
    return 1.0, h * (1 + half), -h * half, 0.0


def consistency(grid: Grid, i: int, eta: float) -> tuple[float, float, float, float]:
    """Multistep consistency sampling (Song et al. 2023, arXiv:2303.01469, algorithm 1): the image, noised anew."""
    return 0.0, grid.alpha[i + 1], 0.0, grid.sigma[i + 1]


# (grid, i, eta) -> a, b, c, s of step i.
Coefficients = Callable[[Grid, int, float], tuple[float, float, float, float]]
SAMPLERS: dict[str, Coefficients] = {
    "ddim": ddim,
    "ddpm": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "euler": euler,
    "ab2": ab2,
    "consistency": consistency,
}
JUMPING = ("consistency",)  # d is the image to which the path leads, of a network that was tuned for few steps
PLAIN = tuple(name for name in SAMPLERS if name not in JUMPING)  # for networks that were not tuned for few steps
FEW, USUAL = 2, 10  # steps where nobody says how many: of JUMPING, and of the others
STOCHASTIC = {"ddim": 0.0, "ddpm": 1.0, "dpmpp_2m_sde": 1.0}  # default eta
