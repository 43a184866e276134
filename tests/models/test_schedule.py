"""The noise process: its ends, its identities, and what a prediction says about the clean image."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from models.schedule import (
    MIN_LOSS_SIGMA,
    SHIFT,
    NoiseSchedule,
    Prediction,
    sample_noise_times,
    training_loss,
)

SCHEDULES = pytest.mark.parametrize("name", ["flow", "cosine", "linear"])
PREDICTIONS = pytest.mark.parametrize("prediction", list(Prediction))
INSIDE = np.linspace(0.001, 0.999, 997)  # away from the ends, where log-SNR is infinite


@SCHEDULES
def test_starts_clean(name: str) -> None:
    schedule = NoiseSchedule(name)
    assert schedule.alpha(np.array(0.0)) == 1
    assert schedule.sigma(np.array(0.0)) == 0


@pytest.mark.parametrize(
    ("name", "alpha"),
    [
        ("flow", 0.0),
        ("cosine", 1e-4),  # clipped: the formula's 0 has no log-SNR
        ("linear", math.sqrt(np.prod(1 - np.linspace(1e-4, 0.02, 1000)))),  # the leak of Ho et al.
    ],
)
def test_ends_in_noise(name: str, alpha: float) -> None:
    schedule = NoiseSchedule(name)
    assert schedule.alpha(np.array(1.0)) == pytest.approx(alpha, rel=1e-12, abs=0)
    assert schedule.sigma(np.array(1.0)) == pytest.approx(1, abs=1e-4)


def test_flow_is_a_straight_line() -> None:
    schedule = NoiseSchedule("flow")
    assert np.array_equal(schedule.alpha(INSIDE), 1 - INSIDE)
    assert np.array_equal(schedule.sigma(INSIDE), INSIDE)


def test_cosine_follows_nichol_and_dhariwal() -> None:
    """Equation 17 gives the square of alpha: f(t) / f(0) with f = cos^2."""
    f = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(NoiseSchedule("cosine").alpha(INSIDE) ** 2, f(INSIDE) / f(0.0), rtol=1e-12)


def test_linear_has_the_betas_of_ddpm_between_its_whole_timesteps() -> None:
    alpha = NoiseSchedule("linear").alpha(np.arange(1001) / 1000)
    np.testing.assert_allclose(1 - (alpha[1:] / alpha[:-1]) ** 2, np.linspace(1e-4, 0.02, 1000), rtol=1e-9)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_variance_is_preserved(name: str) -> None:
    schedule = NoiseSchedule(name)
    np.testing.assert_allclose(schedule.alpha(INSIDE) ** 2 + schedule.sigma(INSIDE) ** 2, 1, rtol=1e-15)


@SCHEDULES
def test_log_snr_falls(name: str) -> None:
    schedule = NoiseSchedule(name)
    log_snr = schedule.log_snr(INSIDE)
    assert (np.diff(log_snr) < 0).all()
    np.testing.assert_allclose(np.exp(log_snr), schedule.alpha(INSIDE) / schedule.sigma(INSIDE), rtol=1e-12)


@SCHEDULES
def test_inverse_log_snr_inverts(name: str) -> None:
    schedule = NoiseSchedule(name)
    # sigma = sqrt(1 - alpha^2) cancels near u = 0 and keeps eleven digits there
    np.testing.assert_allclose(schedule.inverse_log_snr(schedule.log_snr(INSIDE)), INSIDE, rtol=1e-11)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_inverse_log_snr_reaches_the_noisy_end(name: str) -> None:
    """Where cosine is clipped many u share the last log-SNR; any of them is right."""
    schedule = NoiseSchedule(name)
    last = schedule.log_snr(np.array([1.0]))
    np.testing.assert_allclose(schedule.log_snr(schedule.inverse_log_snr(last)), last, rtol=1e-12)


@SCHEDULES
def test_rows_are_alpha_and_sigma_of_each_image(name: str) -> None:
    schedule = NoiseSchedule(name)
    u = torch.tensor([0.0, 0.25, 1.0])
    alpha, sigma = schedule.rows(u)
    assert alpha.shape == sigma.shape == (3, 1, 1, 1)
    assert alpha.dtype == sigma.dtype == torch.float32
    np.testing.assert_allclose(alpha.flatten().numpy(), schedule.alpha(u.numpy()), rtol=1e-6)
    np.testing.assert_allclose(sigma.flatten().numpy(), schedule.sigma(u.numpy()), rtol=1e-6)


def test_unknown_schedule_names_the_known() -> None:
    with pytest.raises(ValueError, match="unknown noise schedule 'sigmoid': use one of flow, cosine, linear"):
        NoiseSchedule("sigmoid")


FINITE = st.floats(-3, 3)


@PREDICTIONS
@SCHEDULES
@given(u=st.floats(0.001, 0.999), x0=FINITE, eps=FINITE)
def test_prediction_leads_back_to_the_clean_image(
    name: str, prediction: Prediction, u: float, x0: float, eps: float
) -> None:
    schedule = NoiseSchedule(name)
    alpha, sigma = float(schedule.alpha(np.array(u))), float(schedule.sigma(np.array(u)))
    a, s, clean, noise = (torch.tensor(value, dtype=torch.float64) for value in (alpha, sigma, x0, eps))
    target = prediction.from_x0_eps(clean, noise, a, s)
    p, q = prediction.to_x0(alpha, sigma)
    # eps divides by alpha, down to 1e-3 here, and so magnifies float64's rounding
    assert p * (alpha * x0 + sigma * eps) + q * float(target) == pytest.approx(x0, abs=1e-11)


@pytest.mark.parametrize(
    ("prediction", "target"), [("eps", 2.0), ("x0", 3.0), ("flow", -1.0), ("v", 0.8 * 2 - 0.6 * 3)]
)
def test_targets_by_hand(prediction: str, target: float) -> None:
    values = (torch.tensor(value, dtype=torch.float64) for value in (3.0, 2.0, 0.8, 0.6))  # x0, eps, alpha, sigma
    assert float(Prediction(prediction).from_x0_eps(*values)) == pytest.approx(target)


def test_eps_is_refused_at_alpha_zero() -> None:
    with pytest.raises(ValueError, match="eps prediction says nothing about x0 at alpha = 0: use v, x0 or flow"):
        Prediction.EPS.to_x0(0.0, 1.0)


@pytest.mark.parametrize("prediction", ["v", "x0", "flow"])
def test_other_predictions_give_the_image_at_alpha_zero(prediction: str) -> None:
    p, q = Prediction(prediction).to_x0(0.0, 1.0)
    x0, eps, alpha, sigma = (torch.tensor(value) for value in (0.5, 1.5, 0.0, 1.0))
    target = float(Prediction(prediction).from_x0_eps(x0, eps, alpha, sigma))
    assert p * 1.5 + q * target == pytest.approx(0.5)


def batch(n: int = 6) -> tuple[torch.Tensor, ...]:
    """x0, eps [n, 1, 4, 4] and u [n], some below and some above the floor of sigma."""
    generator = torch.Generator().manual_seed(0)
    x0, eps, error = (torch.randn(n, 1, 4, 4, generator=generator) for _ in range(3))
    return x0, eps, error, torch.linspace(0.02, 0.98, n)


@PREDICTIONS
@SCHEDULES
def test_loss_of_a_perfect_output_is_zero(name: str, prediction: Prediction) -> None:
    schedule = NoiseSchedule(name)
    x0, eps, error, u = batch()
    target = prediction.from_x0_eps(x0, eps, *schedule.rows(u))
    assert training_loss(prediction, schedule, target, x0, eps, u) == 0
    assert training_loss(prediction, schedule, target + error, x0, eps, u) > 0.5


@SCHEDULES
def test_x0_loss_is_the_velocity_error_above_the_floor(name: str) -> None:
    """An x0 network whose output is turned into a velocity scores what a velocity network would."""
    schedule = NoiseSchedule(name)
    velocity = Prediction.FLOW if name == "flow" else Prediction.V
    x0, eps, error, u = batch()
    u = u.clamp(min=0.3)
    alpha, sigma = schedule.rows(u)
    assert (sigma > MIN_LOSS_SIGMA).all()
    x = alpha * x0 + sigma * eps
    guess = x0 + error
    as_velocity = velocity.from_x0_eps(guess, (x - alpha * guess) / sigma, alpha, sigma)
    expected = training_loss(velocity, schedule, as_velocity, x0, eps, u)
    torch.testing.assert_close(training_loss(Prediction.X0, schedule, guess, x0, eps, u), expected)


def test_x0_loss_stays_bounded_below_the_floor() -> None:
    x0, eps, error, _ = batch(1)
    loss = training_loss(Prediction.X0, NoiseSchedule("flow"), x0 + error, x0, eps, torch.tensor([1e-4]))
    torch.testing.assert_close(loss, (error**2).mean() / MIN_LOSS_SIGMA**2)


def test_loss_is_float32_for_a_bfloat16_output() -> None:
    x0, eps, error, u = batch()
    loss = training_loss(Prediction.V, NoiseSchedule("cosine"), error.bfloat16(), x0, eps, u)
    assert loss.dtype == torch.float32


def test_noise_times_are_a_shifted_logit_normal() -> None:
    u = sample_noise_times(20_000, torch.Generator().manual_seed(0)).double().numpy()
    assert ((u > 0) & (u < 1)).all()
    assert stats.kstest(np.log(u / (1 - u)) - SHIFT, "norm").pvalue > 0.01


@pytest.mark.parametrize("count", [1, 7, 64])
def test_noise_times_hold_one_draw_a_slice(count: int) -> None:
    u = sample_noise_times(count, torch.Generator().manual_seed(count)).double().numpy()
    probability = stats.norm.cdf(np.log(u / (1 - u)) - SHIFT)
    # a draw within float32's rounding of its slice's edge may fall on the other side
    assert np.abs(probability * count - np.arange(count) - 0.5).max() <= 0.5 + 1e-4


def test_noise_times_come_from_the_generator_alone() -> None:
    draws = [sample_noise_times(16, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
