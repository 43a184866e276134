"""Samplers against diffusers' schedulers: same noise process, same timesteps, same noise, whole trajectory.

diffusers counts timesteps from 0, so its timestep k is our t = k + 1. It multiplies its alphas_cumprod out of
betas in float32; the same products in float64 replace them here, so that what is compared is the sampler.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from models.samplers import SamplerTable, build_table
from models.schedule import NoiseSchedule, Prediction
from tests.models.gaussian import INSIDE, OUTSIDE, Array, Gaussian, noise_times, predict, run_table

KINDS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
# Both in float64, the same products in another order. DDPM adds noise of variance 1e-20 in the last step.
FLOAT64 = 1e-9
# DPMSolver and FlowMatchEuler hold state and sigmas in float32: about ten steps of ten operations each.
FLOAT32 = 2e-5

# diffusers turns a torch tensor into a numpy array in a way that numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
DPM_SOLVERS = pytest.mark.parametrize(
    ("sampler", "algorithm"), [("dpmpp_2m", "dpmsolver++"), ("dpmpp_2m_sde", "sde-dpmsolver++")]
)

Ancestral = TypeVar("Ancestral", DDIMScheduler, DDPMScheduler)
Step = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # i, output, x, noise -> next x


def trained_betas(schedule: NoiseSchedule) -> Array:
    alpha = schedule.alpha(np.arange(1001) / 1000)
    return 1 - (alpha[1:] / alpha[:-1]) ** 2


def exact_products(schedule: NoiseSchedule) -> Tensor:
    return torch.from_numpy(schedule.alpha(np.arange(1, 1001) / 1000) ** 2)


def ancestral(kind: type[Ancestral], schedule: NoiseSchedule, prediction: str, clamp: bool) -> Ancestral:
    """A scheduler of ten steps."""
    scheduler = kind(
        trained_betas=trained_betas(schedule),
        prediction_type=KINDS[prediction],  # pyright: ignore[reportArgumentType]
        timestep_spacing="trailing",
        clip_sample=clamp,
    )
    scheduler.alphas_cumprod = exact_products(schedule)
    scheduler.set_timesteps(10)
    return scheduler


def compare(
    table: SamplerTable,
    schedule: NoiseSchedule,
    prediction: Prediction,
    step: Step,
    tolerance: float,
    data: Gaussian = INSIDE,
) -> None:
    """Run diffusers with the exact denoiser and its own state, and hold every state against the table's."""
    dtype = torch.float64 if tolerance == FLOAT64 else torch.float32
    rng = np.random.default_rng(0)
    start, noise = rng.standard_normal(len(data.mean)), rng.standard_normal((len(table), len(data.mean)))
    u = noise_times(table)
    x, states = torch.from_numpy(start).to(dtype), []
    for i in range(len(table)):
        alpha, sigma = float(schedule.alpha(u[i])), float(schedule.sigma(u[i]))
        state = x.double().numpy()
        output = predict(prediction, state, data.denoise(state, alpha, sigma), alpha, sigma)
        # schedulers expect images: [B, C, H, W]
        image = (torch.from_numpy(value).to(dtype).view(1, 1, 1, -1) for value in (output, state, noise[i]))
        x = step(i, *image).flatten()
        states.append(x.double().numpy())
    ours = run_table(table, schedule, prediction, data.denoise, start, noise)
    np.testing.assert_allclose(np.stack(states), ours, rtol=0, atol=tolerance)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clamp", [False, True], ids=["free", "clamped"])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_ddim(name: str, prediction: str, clamp: bool, eta: float) -> None:
    schedule, kind = NoiseSchedule(name), Prediction(prediction)
    scheduler = ancestral(DDIMScheduler, schedule, prediction, clamp)
    table = build_table(schedule, kind, "ddim", 10, eta=eta, clamp=clamp)
    np.testing.assert_allclose(table.rows[:, 0], scheduler.timesteps.numpy() + 1)

    def step(i: int, output: Tensor, x: Tensor, noise: Tensor) -> Tensor:
        # Off by default there, and always on in a table: eps follows the clamped x0 (GLIDE).
        return scheduler.step(
            output,
            int(scheduler.timesteps[i]),
            x,
            eta=eta,
            variance_noise=noise,
            use_clipped_model_output=True,
            return_dict=False,
        )[0]

    compare(table, schedule, kind, step, FLOAT64, OUTSIDE if clamp else INSIDE)


@pytest.mark.parametrize("clamp", [False, True], ids=["free", "clamped"])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_ddpm(name: str, prediction: str, clamp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """variance_type 'fixed_small', the posterior's; it draws its own noise, so ours is put in its place."""
    schedule, kind = NoiseSchedule(name), Prediction(prediction)
    scheduler = ancestral(DDPMScheduler, schedule, prediction, clamp)

    def step(i: int, output: Tensor, x: Tensor, noise: Tensor) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: noise)
            return scheduler.step(output, int(scheduler.timesteps[i]), x, return_dict=False)[0]

    table = build_table(schedule, kind, "ddpm", 10, clamp=clamp)
    compare(table, schedule, kind, step, FLOAT64, OUTSIDE if clamp else INSIDE)


def dpm_solver(schedule: NoiseSchedule, **settings: object) -> DPMSolverMultistepScheduler:
    scheduler = DPMSolverMultistepScheduler(
        trained_betas=trained_betas(schedule),
        solver_order=2,
        solver_type="midpoint",
        timestep_spacing="trailing",
        **settings,  # pyright: ignore[reportArgumentType]
    )
    scheduler.alphas_cumprod = exact_products(schedule)
    return scheduler


def dpm_step(scheduler: DPMSolverMultistepScheduler) -> Step:
    def step(i: int, output: Tensor, x: Tensor, noise: Tensor) -> Tensor:
        return scheduler.step(output, scheduler.timesteps[i], x, variance_noise=noise, return_dict=False)[0]

    scheduler.set_begin_index(0)  # timesteps are rounded there and may repeat, so steps are counted
    return step


@DPM_SOLVERS
@pytest.mark.parametrize("num_steps", [1, 2, 10, 20])
@pytest.mark.parametrize(
    ("name", "prediction"),
    [("cosine", "v"), ("cosine", "x0"), ("linear", "eps"), ("linear", "v"), ("linear", "x0")],
)  # cosine with eps divides float32's rounding by alpha = 1e-4
def test_dpm_solver(name: str, prediction: str, num_steps: int, sampler: str, algorithm: str) -> None:
    schedule, kind = NoiseSchedule(name), Prediction(prediction)
    scheduler = dpm_solver(schedule, algorithm_type=algorithm, prediction_type=KINDS[prediction])
    scheduler.set_timesteps(num_steps)
    table = build_table(schedule, kind, sampler, num_steps, clamp=False)
    np.testing.assert_allclose(table.rows[:, 0], scheduler.timesteps.numpy() + 1)
    compare(table, schedule, kind, dpm_step(scheduler), FLOAT32)


@DPM_SOLVERS
@pytest.mark.parametrize("spacing", ["trailing", "uniform", "karras", "log_snr"])
def test_dpm_solver_on_flow(spacing: str, sampler: str, algorithm: str) -> None:
    """diffusers begins its flow at sigma = 0.999; on our sigmas, 1 included, it computes the same."""
    schedule, kind = NoiseSchedule("flow"), Prediction.FLOW
    table = build_table(schedule, kind, sampler, 10, spacing=spacing, clamp=False)
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        algorithm_type=algorithm,  # pyright: ignore[reportArgumentType]
    )
    scheduler.set_timesteps(10)
    scheduler.sigmas = torch.from_numpy(noise_times(table)).float()
    compare(table, schedule, kind, dpm_step(scheduler), FLOAT32)


@pytest.mark.parametrize("spacing", ["trailing", "uniform", "karras", "log_snr"])
def test_flow_match_euler(spacing: str) -> None:
    """Its stochastic_sampling renoises x0 completely, which no sampler here does."""
    schedule, kind = NoiseSchedule("flow"), Prediction.FLOW
    table = build_table(schedule, kind, "euler", 10, spacing=spacing, clamp=False)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=noise_times(table)[:-1].tolist())
    timesteps = torch.as_tensor(scheduler.timesteps)
    np.testing.assert_allclose(timesteps.numpy(), table.rows[:, 0], rtol=1e-6)

    def step(i: int, output: Tensor, x: Tensor, noise: Tensor) -> Tensor:
        return scheduler.step(output, timesteps[i], x, return_dict=False)[0]  # pyright: ignore[reportArgumentType]

    compare(table, schedule, kind, step, FLOAT32)


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("setting", ["use_karras_sigmas", "use_exponential_sigmas"])
def test_spacings_have_the_sigmas_of_diffusers(setting: str, name: str) -> None:
    """Its exponential sigmas are our log_snr. The timesteps it derives from them are rounded, ours are not."""
    schedule = NoiseSchedule(name)
    scheduler = dpm_solver(schedule, **{setting: True})
    scheduler.set_timesteps(12)
    spacing = "karras" if setting == "use_karras_sigmas" else "log_snr"
    u = noise_times(build_table(schedule, Prediction.X0, "ddim", 12, spacing=spacing))
    np.testing.assert_allclose(schedule.sigma(u) / schedule.alpha(u), scheduler.sigmas.numpy(), rtol=1e-6)


def test_uniform_is_linspace() -> None:
    """diffusers rounds the same points to whole timesteps."""
    scheduler = DDIMScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(8)
    table = build_table(NoiseSchedule("cosine"), Prediction.X0, "ddim", 8, spacing="uniform")
    np.testing.assert_allclose(table.rows[:, 0], scheduler.timesteps.numpy() + 1, rtol=0, atol=0.5)
