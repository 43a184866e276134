"""Plans against the sampler tables and guidance intervals that they are made of."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.checkpoint import ModelConfig
from models.samplers import T, build_table
from models.sampling import Guidance
from models.schedule import NoiseSchedule, Prediction
from service.engine.plan import COEFFICIENTS, INPUTS, NUM_NUMBERS, PREVIEW, compile_plan
from tests.service.engine.tiny import make_params, samplers_of, tiny_config

FLOW = tiny_config("dit")
bounds = st.one_of(st.floats(0, 1), st.integers(0, 10).map(lambda tenth: tenth / 10))


@settings(deadline=None)
@given(num_steps=st.integers(1, 40), ends=st.tuples(bounds, bounds), scale=st.sampled_from([0.0, 1.0, 2.5]))
@example(num_steps=3, ends=(0.0, 1 - 1 / 3), scale=2.5)  # the bound is a timestep that float32 rounds up
@example(num_steps=10, ends=(0.1, 0.3), scale=2.5)  # float64 puts the steps at 0.1 and 0.3 just outside
def test_a_row_is_spent_where_guidance_is_applied(num_steps: int, ends: tuple[float, float], scale: float) -> None:
    low, high = sorted(ends)
    plan = compile_plan(FLOW, make_params(num_steps=num_steps, guidance_scale=scale, guidance_interval=(low, high)))
    table = build_table(NoiseSchedule("flow"), Prediction("x0"), "ddim", num_steps)
    guided = [Guidance(scale, low, high).active(t) for t in table.rows[:, T].tolist()]
    assert [rows == 2 for rows in plan.rows] == guided
    assert set(plan.rows) <= {1, 2}
    assert plan.numbers[:, 1].tolist() == [scale if active else 1.0 for active in guided]
    assert plan.remaining == tuple(sum(plan.rows[step:]) for step in range(num_steps + 1))


@pytest.mark.parametrize(
    ("scale", "interval", "rows"),
    [
        (1.0, (0.0, 1.0), (1, 1, 1, 1)),
        (3.0, (0.0, 1.0), (2, 2, 2, 2)),
        (3.0, (0.4, 0.8), (1, 2, 2, 1)),  # noise times 1, 3/4, 1/2, 1/4
        (3.0, (0.5, 0.75), (1, 2, 2, 1)),
        (3.0, (0.8, 0.9), (1, 1, 1, 1)),
    ],
    ids=["off", "on", "interval", "bounds-belong-to-it", "between-steps"],
)
def test_guided_steps_take_two_rows(scale: float, interval: tuple[float, float], rows: tuple[int, ...]) -> None:
    plan = compile_plan(FLOW, make_params(num_steps=4, guidance_scale=scale, guidance_interval=interval))
    assert plan.rows == rows
    assert plan.remaining[0] == sum(rows)
    assert plan.remaining[-1] == 0


@pytest.mark.parametrize("sampler", samplers_of(FLOW))
def test_the_numbers_of_a_plan_are_those_of_the_table(sampler: str) -> None:
    plan = compile_plan(FLOW, make_params(num_steps=7, sampler=sampler, guidance_scale=2.0))
    table = FLOW.table(sampler, 7)
    assert plan.numbers.shape == (7, NUM_NUMBERS)
    assert plan.numbers.dtype == np.float32
    timesteps, coefficients, preview = plan.numbers[:, 0], plan.numbers[:, COEFFICIENTS], plan.numbers[:, PREVIEW]
    np.testing.assert_array_equal(timesteps, table.rows[:, T].astype(np.float32))
    np.testing.assert_array_equal(coefficients[:, 0], 2.0)
    np.testing.assert_array_equal(coefficients[:, 1:7], table.rows[:, 1:].astype(np.float32))
    np.testing.assert_array_equal(coefficients[:, 7], 0.0 if sampler == "ab2" else 1.0)  # clamp
    np.testing.assert_array_equal(preview, table.preview.astype(np.float32))


@pytest.mark.parametrize(
    ("sampler", "scale", "rows", "given"),
    [
        ("consistency", 1.5, (1, 1), [1.5, 1.5]),
        ("consistency", 4.0, (2, 2), [1.0, 1.0]),  # beyond what the network has learnt
        ("euler", 1.5, (1, 1), [1.0, 1.5]),  # the interval goes to 0.6, and the noise times are 1 and 0.5
        ("euler", 4.0, (1, 2), [1.0, 1.0]),
        ("euler", 1.0, (1, 1), [1.0, 1.0]),
    ],
)
def test_a_few_step_network_gets_its_times_and_its_scale(
    sampler: str, scale: float, rows: tuple[int, ...], given: list[float]
) -> None:
    params = make_params(num_steps=2, sampler=sampler, guidance_scale=scale, guidance_interval=(0.0, 0.6))
    plan = compile_plan(tiny_config("few-dit"), params)
    t, r, w = plan.numbers[:, INPUTS].T.tolist()
    assert t == [1000, 500]
    assert r == ([0, 0] if sampler == "consistency" else t)
    assert w == given
    assert plan.rows == rows
    between = [scale if row == 2 else 1.0 for row in rows]
    assert plan.numbers[:, COEFFICIENTS][:, 0].tolist() == between


def test_a_plain_network_has_no_consistency_sampler() -> None:
    with pytest.raises(ValueError, match="tuned for few steps"):
        compile_plan(FLOW, make_params(sampler="consistency"))


def test_equal_settings_share_a_plan() -> None:
    plan = compile_plan(FLOW, make_params(class_label=1, seeds=(1,)))
    assert compile_plan(FLOW, make_params(class_label=2, seeds=(3, 4))) is plan
    others = make_params(num_steps=5), make_params(sampler="ddpm"), make_params(guidance_scale=2.0)
    assert all(compile_plan(FLOW, params) is not plan for params in others)


def test_models_of_another_kind_have_other_plans() -> None:
    cosine = compile_plan(tiny_config("unet"), make_params())
    assert not np.array_equal(cosine.numbers, compile_plan(FLOW, make_params()).numbers)


@pytest.mark.parametrize(
    ("process", "changes", "message"),
    [
        (("flow", "eps"), {}, "eps prediction says nothing about x0 at alpha = 0"),
        (("cosine", "v"), {"sampler": "euler"}, "euler integrates the flow schedule"),
        (("flow", "x0"), {"sampler": "heun"}, "unknown sampler 'heun'"),
        (("flow", "x0"), {"num_steps": 0}, "steps must lie in"),
    ],
    ids=["eps-on-flow", "euler-without-flow", "sampler", "steps"],
)
def test_what_cannot_be_compiled_is_named(process: tuple[str, str], changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_plan(ModelConfig("dit", {}, *process), make_params(**changes))
