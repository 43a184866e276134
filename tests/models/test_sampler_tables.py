"""What every sampler table has in common, and the requests for tables that do not exist."""

import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.samplers import JUMPING, SAMPLERS, SPACINGS, STOCHASTIC, SamplerTable, build_table
from models.schedule import NoiseSchedule, Prediction
from tests.models.gaussian import noise_times, predict

T, P, Q, A, B, C, S = range(7)
TOLERANCE = 1e-9  # float64, with sqrt(1 - alpha^2) and 1 / alpha at alpha = 1e-4 on the way


Drawn = tuple[NoiseSchedule, Prediction, SamplerTable]


@st.composite
def tables(draw: st.DrawFn, samplers: tuple[str, ...] = tuple(SAMPLERS)) -> Drawn:
    name = draw(st.sampled_from(["flow", "cosine", "linear"]))
    sampler = draw(st.sampled_from(samplers))
    spacing = draw(st.sampled_from(list(SPACINGS)))
    prediction = draw(st.sampled_from(list(Prediction)))
    assume(sampler != "euler" or name == "flow")
    assume(prediction != "eps" or name != "flow" or spacing in ("karras", "log_snr"))
    eta = draw(st.none() | st.floats(0, 1)) if sampler in STOCHASTIC else None
    steps = draw(st.integers(1, 60) | st.sampled_from([999, 1000]))
    schedule = NoiseSchedule(name)
    options = {"spacing": spacing, "eta": eta, "few_step": True}
    return schedule, prediction, build_table(schedule, prediction, sampler, steps, **options)


DENOISING = tuple(name for name in SAMPLERS if name != "ab2")  # those whose d is the denoised image


@settings(deadline=None)
@given(tables())
def test_rows_are_finite_and_go_from_noise_to_clean(drawn: Drawn) -> None:
    _, _, table = drawn
    assert np.isfinite(table.rows).all()
    assert (table.rows[:, T] > 0).all()
    assert (table.rows[:, T] <= 1000).all()
    assert (np.diff(table.rows[:, T]) < 0).all()


@settings(deadline=None)
@given(tables())
def test_first_row_has_no_past_and_last_row_no_noise(drawn: Drawn) -> None:
    _, _, table = drawn
    assert table.rows[0, C] == 0
    assert table.rows[-1, S] == 0


@settings(deadline=None)
@given(tables(DENOISING))
def test_last_state_is_the_denoised_image(drawn: Drawn) -> None:
    _, _, table = drawn
    assert table.rows[-1, [A, B, C, S]].tolist() == [0, 1, 0, 0]


@settings(deadline=None)
@given(tables(DENOISING))
def test_update_keeps_mean_and_variance_of_the_process(drawn: Drawn) -> None:
    """With a denoiser that knows x0, x = alpha x0 + sigma eps goes to mean alpha' x0 and variance sigma'^2."""
    schedule, _, table = drawn
    u = noise_times(table)
    alpha, sigma = schedule.alpha(u), schedule.sigma(u)
    _, _, _, a, b, c, s = table.rows.T
    np.testing.assert_allclose(a * alpha[:-1] + b + c, alpha[1:], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose((a * sigma[:-1]) ** 2 + s**2, sigma[1:] ** 2, rtol=0, atol=TOLERANCE)


@settings(deadline=None)
@given(tables(DENOISING), st.floats(-1, 1), st.floats(-3, 3))
def test_first_columns_recover_the_clean_image(drawn: Drawn, x0: float, eps: float) -> None:
    schedule, prediction, table = drawn
    for t, p, q, *_ in table.rows:
        alpha, sigma = (float(f(np.array(t / 1000))) for f in (schedule.alpha, schedule.sigma))
        x = alpha * x0 + sigma * eps
        output = predict(prediction, np.array(x), np.array(x0), alpha, sigma)
        assert p * x + q * output == pytest.approx(x0, abs=TOLERANCE)


@settings(deadline=None)
@given(tables(("ddim", "dpmpp_2m", "euler")), st.floats(-1, 1), st.floats(-3, 3))
def test_perfect_denoiser_stays_on_its_path(drawn: Drawn, x0: float, eps: float) -> None:
    """Without fresh noise and with x0 known, every state is alpha x0 + sigma eps of its time."""
    schedule, _, table = drawn
    assume(not table.rows[:, S].any())
    u = noise_times(table)
    alpha, sigma = schedule.alpha(u), schedule.sigma(u)
    x = alpha[0] * x0 + sigma[0] * eps
    for i, (_, _, _, a, b, c, _) in enumerate(table.rows):
        x = a * x + (b + c) * x0
        assert x == pytest.approx(alpha[i + 1] * x0 + sigma[i + 1] * eps, abs=TOLERANCE)


@settings(deadline=None)
@given(st.sampled_from(list(SPACINGS)), st.integers(1, 60), st.floats(-1, 1), st.floats(-3, 3))
def test_adams_bashforth_follows_a_straight_line(spacing: str, steps: int, x0: float, eps: float) -> None:
    """On the flow the velocity eps - x0 of a known x0 is constant, and every order is exact."""
    schedule = NoiseSchedule("flow")
    table = build_table(schedule, Prediction.FLOW, "ab2", steps, spacing=spacing)
    u = noise_times(table)
    x = (1 - u[0]) * x0 + u[0] * eps
    for i, (_, p, q, a, b, c, _) in enumerate(table.rows):
        assert p * x + q * (eps - x0) == pytest.approx(eps - x0, abs=TOLERANCE)
        x = a * x + (b + c) * (eps - x0)
        assert x == pytest.approx((1 - u[i + 1]) * x0 + u[i + 1] * eps, abs=TOLERANCE)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("spacing", list(SPACINGS))
@pytest.mark.parametrize(
    ("name", "sampler"),
    [(n, s) for n in ("flow", "cosine", "linear") for s in SAMPLERS if s != "euler" or n == "flow"],
)
def test_a_perfect_network_gives_its_image_in_any_number_of_steps(
    name: str, sampler: str, spacing: str, steps: int
) -> None:
    """The network knows x0, and answers for the state that it is shown, also where that has left the path."""
    schedule, x0 = NoiseSchedule(name), 0.7
    table = build_table(schedule, Prediction.X0, sampler, steps, spacing=spacing, few_step=True)
    x, history = -1.3, 0.0
    for _, p, q, a, b, c, _ in table.rows:
        d = p * x + q * x0
        x, history = a * x + b * d + c * history, d
    assert x == pytest.approx(x0, abs=TOLERANCE)


def test_jumps_lead_to_the_image() -> None:
    for sampler in SAMPLERS:
        table = build_table(NoiseSchedule("flow"), Prediction.X0, sampler, 3, few_step=True)
        assert (table.jumps == 0).all() == (sampler in JUMPING)


def test_euler_is_ddim_without_noise() -> None:
    flow = NoiseSchedule("flow")
    euler, ddim = (build_table(flow, Prediction.FLOW, sampler, 13) for sampler in ("euler", "ddim"))
    np.testing.assert_allclose(euler.rows, ddim.rows, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", ["flow", "cosine", "linear"])
@pytest.mark.parametrize(("sampler", "other"), [("ddpm", "ddim"), ("dpmpp_2m_sde", "dpmpp_2m")])
def test_eta_leads_from_one_sampler_to_another(name: str, sampler: str, other: str) -> None:
    schedule = NoiseSchedule(name)
    rows = build_table(schedule, Prediction.V, sampler, 9, eta=0.0).rows
    np.testing.assert_allclose(rows, build_table(schedule, Prediction.V, other, 9).rows, rtol=0, atol=1e-14)


def test_single_dpmpp_sde_step_is_the_ancestral_one() -> None:
    """At first order and eta = 1 SDE-DPM-Solver++ draws from the same posterior as DDPM."""
    schedule = NoiseSchedule("cosine")
    sde, ddpm = (build_table(schedule, Prediction.X0, s, 9).rows[0] for s in ("dpmpp_2m_sde", "ddpm"))
    np.testing.assert_allclose(sde, ddpm, rtol=0, atol=TOLERANCE)


def test_defaults() -> None:
    flow = NoiseSchedule("flow")
    table = build_table(flow, Prediction.X0, "ddim", 4)
    assert table.rows[:, T].tolist() == [1000, 750, 500, 250]  # trailing: starts at pure noise
    assert table.clamp
    assert not table.rows[:, S].any()
    assert build_table(flow, Prediction.X0, "ddpm", 4).rows[:-1, S].all()
    assert not build_table(flow, Prediction.X0, "ab2", 4).clamp  # its d is a velocity


def test_spacings_by_hand() -> None:
    flow = NoiseSchedule("flow")
    times = {s: build_table(flow, Prediction.X0, "ddim", 3, spacing=s).rows[:, T] for s in SPACINGS}
    np.testing.assert_allclose(times["trailing"], [1000, 2000 / 3, 1000 / 3])
    np.testing.assert_allclose(times["uniform"], [1000, 500.5, 1])
    np.testing.assert_allclose(times["shifted"], [1000, 6000 / 7, 600])  # 3 u / (1 + 2 u) of the trailing ones
    np.testing.assert_allclose(times["log_snr"], [999, 500, 1])  # sigma / alpha 999, 1, 1 / 999
    middle = ((999 ** (1 / 7) + 999 ** (-1 / 7)) / 2) ** 7
    np.testing.assert_allclose(times["karras"], [999, 1000 * middle / (1 + middle), 1])


def test_tables_are_shared_and_read_only() -> None:
    flow = NoiseSchedule("flow")
    table = build_table(flow, Prediction.X0, "ddim", 5)
    assert build_table(NoiseSchedule("flow"), Prediction.X0, "ddim", 5) is table
    with pytest.raises(ValueError, match="read-only"):
        table.rows[0, A] = 1


@pytest.mark.parametrize(
    ("name", "prediction", "sampler", "steps", "options", "message"),
    [
        ("flow", "x0", "heun", 5, {}, "unknown sampler 'heun': use one of ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, "),
        ("flow", "x0", "ddim", 5, {"spacing": "cubic"}, "unknown spacing 'cubic': use one of trailing, uniform"),
        ("flow", "x0", "ddim", 0, {}, "steps must lie in 1..1000, got 0"),
        ("flow", "x0", "ddim", 1001, {}, "steps must lie in 1..1000, got 1001"),
        ("cosine", "x0", "euler", 5, {}, "euler integrates the flow schedule: use ddim"),
        ("flow", "x0", "ddim", 5, {"eta": -0.1}, "eta must lie in 0..1 and belongs to ddim, ddpm, dpmpp_2m_sde"),
        ("flow", "x0", "ddpm", 5, {"eta": 1.1}, "eta must lie in 0..1"),
        ("flow", "x0", "ddim", 5, {"eta": float("nan")}, "eta must lie in 0..1"),
        ("flow", "x0", "consistency", 2, {}, "consistency needs a network that was tuned for few steps"),
        ("flow", "x0", "euler", 5, {"eta": 0.5}, "belongs to ddim, ddpm, dpmpp_2m_sde"),
        ("flow", "eps", "ddim", 5, {}, "eps prediction says nothing about x0 at alpha = 0: use v, x0 or flow"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)  # fmt: skip
def test_impossible_tables_say_what_is_allowed(
    name: str, prediction: str, sampler: str, steps: int, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_table(NoiseSchedule(name), Prediction(prediction), sampler, steps, **options)
