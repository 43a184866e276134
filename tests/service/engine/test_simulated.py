"""A device that takes time and computes nothing."""

import time

import numpy as np
import pytest

from service.engine.core import EngineConfig, EngineCore
from service.engine.request import Request
from service.engine.simulated import SimulatedRunner, StepCost, sleep_until, stripes
from tests.service.engine.tiny import drive, make_params, make_request, tiny_config


def simulated_core(cost: StepCost, max_rows: int = 8) -> EngineCore:
    core = EngineCore({"dit": SimulatedRunner(tiny_config(), cost, max_rows)}, EngineConfig(max_rows))
    core.warm_up("dit")
    return core


def test_a_step_costs_a_part_for_itself_and_one_for_each_row() -> None:
    assert StepCost(2.0, 0.5).seconds(8) == pytest.approx(0.006)
    core = simulated_core(StepCost(2.0, 0.5))
    measured = core.runners["dit"].step_seconds
    assert all(measured[rows] >= StepCost(2.0, 0.5).seconds(rows) for rows in range(1, 9))
    assert measured[8] > measured[1]


def test_requests_go_through_the_real_scheduler_and_get_stripes() -> None:
    core = simulated_core(StepCost(0.1, 0.01))
    requests: list[Request] = [
        make_request(make_params(num_steps=steps, guidance_scale=2.0, seeds=(1, 2))) for steps in (3, 5)
    ]
    ended, steps = drive(core, {0: requests})
    assert ended == requests
    assert [step.num_rows for step in steps] == [8, 8, 8, 4, 4]
    for request in requests:
        assert sorted(request.images) == [0, 1]
        np.testing.assert_array_equal(request.images[0], stripes((1, 8, 8)))


def test_it_cannot_be_mistaken_for_a_model() -> None:
    runner = SimulatedRunner(tiny_config(), StepCost(1.0, 0.0), 2)
    assert runner.describe() == {"device": "simulated", "dtype": "none"}
    picture = stripes((3, 32, 32))
    assert picture.shape == (32, 32, 3)
    assert sorted(np.unique(picture)) == [48, 208]  # two grey levels


def test_a_sleep_does_not_end_early() -> None:
    for seconds in (0.0, 0.0001, 0.003):
        ends = time.monotonic() + seconds
        sleep_until(ends)
        assert time.monotonic() >= ends


def test_no_network_is_loaded() -> None:
    assert list(SimulatedRunner(tiny_config(), StepCost(1.0, 0.0), 2).model.parameters()) == []
