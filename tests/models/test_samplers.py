"""Every sampler against its textbook loop, in the variables of its paper, over the whole trajectory.

The denoiser is exact (Gaussian data), everything is float64, and the states after every step are compared: a
flipped sign may leave the end point as it was.

Loops of variance-preserving papers serve any alpha and sigma by x / sqrt(alpha^2 + sigma^2), those of
variance-exploding ones (k-diffusion) by x / alpha and sigma / alpha: the same process in other units.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from models.samplers import SPACINGS, STOCHASTIC, build_table
from models.schedule import NoiseSchedule, Prediction
from tests.models.gaussian import INSIDE, OUTSIDE, Array, Gaussian, noise_times, run_table

STEPS = (1, 2, 3, 8)
ROUNDING = 1e-9  # both sides in float64; sqrt(1 - alpha^2) and eps at alpha = 1e-4 cost up to six digits


@dataclass(frozen=True)
class Problem:
    """What a textbook loop needs: the grid, the denoiser, the start and the noise of every step."""

    u: Array  # [num_steps + 1]
    alpha: Array
    sigma: Array
    data: Gaussian
    clamp: bool
    start: Array  # [E]
    noise: Array  # [num_steps, E]

    def __len__(self) -> int:
        return len(self.noise)

    def x0(self, x: Array, i: int) -> Array:
        x0 = self.data.denoise(x, self.alpha[i], self.sigma[i])
        return x0.clip(-1, 1) if self.clamp else x0


def ddim_loop(problem: Problem, eta: float) -> Iterator[Array]:
    """Song et al. 2020, equations 12 and 16, in eps. A clipped x0 re-derives eps, as Glide does."""
    norm = np.hypot(problem.alpha, problem.sigma)
    a = (problem.alpha / norm) ** 2  # the paper's alpha_t
    x = problem.start / norm[0]
    for i in range(len(problem)):
        x0 = problem.x0(x * norm[i], i)
        eps = (x - np.sqrt(a[i]) * x0) / np.sqrt(1 - a[i])
        std = eta * np.sqrt((1 - a[i + 1]) / (1 - a[i])) * np.sqrt(1 - a[i] / a[i + 1])
        kept = (1 - a[i + 1]) * (1 - eta**2 * (1 - a[i] / a[i + 1]) / (1 - a[i]))  # 1 - a' - std^2, uncancelled
        x = np.sqrt(a[i + 1]) * x0 + np.sqrt(kept) * eps + std * problem.noise[i]
        yield x * norm[i + 1]


def ddpm_loop(problem: Problem, eta: float) -> Iterator[Array]:
    """Ho et al. 2020, equations 6 and 7: mean and variance of the posterior, in betas (eta is 1)."""
    norm = np.hypot(problem.alpha, problem.sigma)
    alpha_bar = (problem.alpha / norm) ** 2
    x = problem.start / norm[0]
    for i in range(len(problem)):
        now, after = alpha_bar[i], alpha_bar[i + 1]
        beta = 1 - now / after
        x0 = problem.x0(x * norm[i], i)
        mean = np.sqrt(after) * beta / (1 - now) * x0 + np.sqrt(1 - beta) * (1 - after) / (1 - now) * x
        variance = (1 - after) / (1 - now) * beta
        x = mean + np.sqrt(variance) * problem.noise[i]
        yield x * norm[i + 1]


def dpmpp_2m_loop(problem: Problem, eta: float) -> Iterator[Array]:
    """k-diffusion's sample_dpmpp_2m."""
    with np.errstate(divide="ignore"):
        t = -np.log(problem.sigma / problem.alpha)
    x, old = problem.start / problem.alpha[0], None
    for i in range(len(problem)):
        denoised = problem.x0(x * problem.alpha[i], i)
        h = t[i + 1] - t[i]
        if old is None or problem.sigma[i + 1] == 0:
            d = denoised
        else:
            r = (t[i] - t[i - 1]) / h
            d = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old
        x, old = np.exp(t[i] - t[i + 1]) * x - np.expm1(-h) * d, denoised
        yield x * problem.alpha[i + 1]


def dpmpp_2m_sde_loop(problem: Problem, eta: float) -> Iterator[Array]:
    """k-diffusion's sample_dpmpp_2m_sde, solver_type 'midpoint'."""
    sigmas = problem.sigma / problem.alpha
    x, old, h_last = problem.start / problem.alpha[0], None, 0.0
    for i in range(len(problem)):
        denoised = problem.x0(x * problem.alpha[i], i)
        if sigmas[i + 1] == 0:
            x = denoised
        else:
            h = np.log(sigmas[i]) - np.log(sigmas[i + 1])
            x = sigmas[i + 1] / sigmas[i] * np.exp(-eta * h) * x - np.expm1(-h - eta * h) * denoised
            if old is not None:
                r = h_last / h
                x = x - 0.5 * np.expm1(-h - eta * h) * (1 / r) * (denoised - old)
            x = x + problem.noise[i] * sigmas[i + 1] * np.sqrt(-np.expm1(-2 * eta * h))
            h_last = h
        old = denoised
        yield x * problem.alpha[i + 1]


def euler_loop(problem: Problem, eta: float) -> Iterator[Array]:
    """Liu et al. 2022: dx/du = v, one Euler step an evaluation, from u = 1 down to 0."""
    x = problem.start
    for i in range(len(problem)):
        x0 = problem.x0(x, i)
        v = (x - problem.alpha[i] * x0) / problem.sigma[i] - x0
        x = x + (problem.u[i + 1] - problem.u[i]) * v
        yield x


def ab2_loop(problem: Problem, eta: float) -> Iterator[Array]:
    """Adams-Bashforth with variable steps (Hairer, Norsett & Wanner, section III.5) on dx/dtau = v.

    For flow v = eps - x0 and tau = u; a variance-preserving process turns by the angle tau = arccos alpha and
    has v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D). Its last step takes x0 of the state.
    """
    flow = np.array_equal(problem.alpha, 1 - problem.u)
    tau = problem.u if flow else np.arccos(problem.alpha)
    x, old = problem.start, np.zeros_like(problem.start)
    for i in range(len(problem)):
        x0 = problem.x0(x, i)
        eps = (x - problem.alpha[i] * x0) / problem.sigma[i]
        v = eps - x0 if flow else problem.alpha[i] * eps - problem.sigma[i] * x0
        h = tau[i + 1] - tau[i]
        ratio = h / (tau[i] - tau[i - 1]) if i else 0.0
        x, old = x + h * ((1 + ratio / 2) * v - ratio / 2 * old), v
        yield x if flow or i + 1 < len(problem) else x0


def consistency_loop(problem: Problem, eta: float) -> Iterator[Array]:
    """Song et al. 2023, algorithm 1, in whose units x is x / alpha and the time is sigma / alpha."""
    with np.errstate(divide="ignore"):
        times = problem.sigma / problem.alpha
    x = problem.x0(problem.start, 0)
    for i in range(1, len(problem)):
        scaled = x + times[i] * problem.noise[i - 1]
        yield problem.alpha[i] * scaled
        x = problem.x0(problem.alpha[i] * scaled, i)
    yield x


Loop = Callable[[Problem, float], Iterator[Array]]
LOOPS: dict[str, Loop] = {
    "ddim": ddim_loop,
    "ddpm": ddpm_loop,
    "dpmpp_2m": dpmpp_2m_loop,
    "dpmpp_2m_sde": dpmpp_2m_sde_loop,
    "euler": euler_loop,
    "ab2": ab2_loop,
    "consistency": consistency_loop,
}


def textbook(sampler: str, problem: Problem, eta: float) -> Array:
    """The states of the loop, [num_steps, E].

    At alpha = 0 (flow at u = 1) the log-SNR is -inf and the loops in it cannot begin. There the first step is
    their limit for h -> inf, alpha' x0 plus sigma' times the old noise or, with any eta, new noise; the second
    step is theirs with r = inf, which is to say their first one.
    """
    if not sampler.startswith("dpmpp") or problem.alpha[0] > 0:
        return np.stack(list(LOOPS[sampler](problem, eta)))
    direction = problem.noise[0] if eta else problem.start / problem.sigma[0]
    state = problem.alpha[1] * problem.x0(problem.start, 0) + problem.sigma[1] * direction
    rest = Problem(
        problem.u[1:], problem.alpha[1:], problem.sigma[1:], problem.data, problem.clamp, state, problem.noise[1:]
    )
    return np.stack([state, *LOOPS[sampler](rest, eta)])


def assert_same_trajectory(
    schedule: NoiseSchedule,
    prediction: Prediction,
    sampler: str,
    num_steps: int,
    spacing: str,
    eta: float | None,
    clamp: bool,
) -> None:
    table = build_table(
        schedule, prediction, sampler, num_steps, spacing=spacing, eta=eta, clamp=clamp, few_step=True
    )
    rng = np.random.default_rng(num_steps)
    data = OUTSIDE if clamp else INSIDE
    start, noise = rng.standard_normal(len(data.mean)), rng.standard_normal((num_steps, len(data.mean)))
    u = noise_times(table)
    problem = Problem(u, schedule.alpha(u), schedule.sigma(u), data, clamp, start, noise)
    states = run_table(table, schedule, prediction, data.denoise, start, noise)
    expected = textbook(sampler, problem, STOCHASTIC.get(sampler, 0.0) if eta is None else eta)
    case = f"{prediction}, {spacing}, {num_steps} steps"
    np.testing.assert_allclose(states, expected, rtol=0, atol=ROUNDING, err_msg=case)


VARIANTS: list[tuple[str, float | None]] = [
    ("ddim", None),
    ("ddim", 0.4),
    ("ddim", 1.0),
    ("ddpm", None),
    ("dpmpp_2m", None),
    ("dpmpp_2m_sde", 0.0),
    ("dpmpp_2m_sde", 0.3),
    ("dpmpp_2m_sde", None),
    ("euler", None),
    ("ab2", None),
    ("consistency", None),
]
COMBINATIONS = [
    pytest.param(name, sampler, eta, id=f"{name}-{sampler}" + ("" if eta is None else f"-eta-{eta}"))
    for name in ("flow", "cosine", "linear")
    for sampler, eta in VARIANTS
    if sampler != "euler" or name == "flow"
]


@pytest.mark.parametrize(("name", "sampler", "eta"), COMBINATIONS)
def test_trajectory_equals_the_textbook_loop(name: str, sampler: str, eta: float | None) -> None:
    schedule = NoiseSchedule(name)
    for prediction, spacing in product(Prediction, SPACINGS):
        if prediction == "eps" and name == "flow" and spacing in ("trailing", "uniform", "shifted"):
            with pytest.raises(ValueError, match="eps prediction says nothing about x0 at alpha = 0"):
                build_table(schedule, prediction, sampler, 4, spacing=spacing, eta=eta, few_step=True)
            continue
        for num_steps in STEPS:
            assert_same_trajectory(schedule, prediction, sampler, num_steps, spacing, eta, clamp=False)


@pytest.mark.parametrize(("name", "sampler", "eta"), [case for case in COMBINATIONS if case.values[1] != "ab2"])
def test_clamped_trajectory_equals_the_textbook_loop(name: str, sampler: str, eta: float | None) -> None:
    for num_steps in STEPS:
        assert_same_trajectory(NoiseSchedule(name), Prediction.V, sampler, num_steps, "trailing", eta, clamp=True)


def test_clamp_cuts_these_images() -> None:
    """Otherwise the test above would compare two unclamped runs."""
    schedule, noise = NoiseSchedule("flow"), np.zeros((8, 3))
    tables = [build_table(schedule, Prediction.X0, "ddim", 8, clamp=clamp) for clamp in (True, False)]
    ends = [run_table(t, schedule, Prediction.X0, OUTSIDE.denoise, np.ones(3), noise)[-1] for t in tables]
    assert np.abs(ends[0]).max() == 1
    assert np.abs(ends[1]).max() > 1.3


@pytest.mark.parametrize(
    ("name", "sampler", "order"),
    [
        ("flow", "euler", 1),
        ("flow", "ddim", 1),
        ("cosine", "ddim", 1),
        ("flow", "dpmpp_2m", 2),
        ("cosine", "dpmpp_2m", 2),
        ("flow", "ab2", 2),
        ("cosine", "ab2", 2),
    ],
)
def test_order_of_convergence(name: str, sampler: str, order: int) -> None:
    """Halving the steps of the exact ODE divides the error by 2^order.

    Taken before the last step, which they do as x = x0, first order in sigma^2 (but ab2 on the flow).
    """
    schedule, start = NoiseSchedule(name), np.array([1.5, -0.8, 0.3, 2.0, -1.1, 0.7])
    errors = []
    for num_steps in (160, 320, 640):
        table = build_table(schedule, Prediction.X0, sampler, num_steps, spacing="log_snr", clamp=False)
        states = run_table(table, schedule, Prediction.X0, INSIDE.denoise, start, np.zeros((num_steps, len(start))))
        u = noise_times(table)[[0, -2]]
        first, last = zip(schedule.alpha(u), schedule.sigma(u), strict=True)
        errors.append(np.abs(states[-2] - INSIDE.solve_ode(start, first, last)).max())
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), order, atol=0.1)
