"""The runner with real tiny models: what it makes equals the plain loop, at the cost that was planned.

Letters: R forward rows, n images.
"""

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.samplers import PLAIN
from service.engine.request import ImageTask
from service.engine.row_cap import knee, row_counts
from service.engine.runner import MIDDLE, REHEARSED, ModelFailed, ModelRunner
from service.engine.simulated import SimulatedRunner, StepCost
from tests.service.engine.tiny import (
    CPU,
    Cramped,
    Watched,
    make_params,
    make_request,
    solo,
    tiny_config,
    tiny_model,
)

BOTH = pytest.mark.parametrize("architecture", ["dit", "unet"])


def make_runner(model: nn.Module, num_slots: int = 6, dtype: torch.dtype = torch.float32) -> ModelRunner:
    return ModelRunner(model, tiny_config(), CPU, dtype, num_slots)


def place(*tasks: ImageTask) -> list[ImageTask]:
    """Give tasks slots, the last one first: a slot is not a place in the batch."""
    for slot, task in enumerate(reversed(tasks)):
        task.slot = slot
    return list(tasks)


def run_to_end(runner: ModelRunner, tasks: list[ImageTask]) -> dict[ImageTask, np.ndarray]:
    """All tasks have equally many steps."""
    images = {}
    for _ in range(tasks[0].request.params.num_steps):
        result = runner.execute(tasks)
        assert not result.failed
        images |= result.images
        for task in tasks:
            task.step += 1
    return images


class Inputs(nn.Module):
    """Keeps what the forward gets."""

    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.calls.append((x.clone(), t.clone(), y.clone()))
        return x / 2


def test_the_forward_gets_conditional_rows_and_then_an_unconditional_one_for_each_guided_image() -> None:
    model = Inputs()
    runner = make_runner(model)
    plain, guided, partly = (
        make_request(make_params(class_label=3, num_steps=5)).tasks[0],
        make_request(make_params(class_label=4, num_steps=4, guidance_scale=2.0, seeds=(6,))).tasks[0],
        make_request(
            make_params(class_label=5, num_steps=2, guidance_scale=2.0, guidance_interval=(0.0, 0.7), seeds=(7,))
        ).tasks[0],
    )
    tasks = place(plain, guided, partly)
    for _ in range(2):
        runner.execute(tasks)
        for task in tasks:
            task.step += 1
    (_, t, y), (x, later_t, later_y) = model.calls
    assert y.tolist() == [3, 4, 5, 10]
    assert t.tolist() == [1000, 1000, 1000, 1000]
    assert later_y.tolist() == [3, 4, 5, 10, 10]
    assert later_t.tolist() == [800, 750, 500, 750, 500]
    assert torch.equal(x[3], x[1])  # a guided image's two rows see the same latent
    assert torch.equal(x[4], x[2])
    assert not torch.equal(x[0], x[1])


@BOTH
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_one_image_equals_the_plain_loop_bitwise(architecture: str, sampler: str) -> None:
    """Alone, the same tensors go through the same code; a mixed batch is compared in test_mixed_batch.py."""
    config, model = tiny_config(architecture), tiny_model(architecture)
    params = make_params(architecture, sampler=sampler, num_steps=5, guidance_scale=2.0)
    runner = ModelRunner(model, config, CPU, torch.float32, 4)
    tasks = place(*make_request(params).tasks)
    run_to_end(runner, tasks)
    assert torch.equal(runner.pool.x[0], solo(model, config, params))


@pytest.mark.parametrize("sampler", PLAIN)
def test_every_sampler_is_reachable_and_its_image_finite(sampler: str) -> None:
    tasks = place(*make_request(make_params(sampler=sampler)).tasks)
    (image,) = run_to_end(make_runner(tiny_model()), tasks).values()
    assert image.shape == (8, 8, 1)
    assert image.dtype == np.uint8
    assert image.std() > 5  # not a flat picture


def test_sampler_state_stays_float32_under_half_precision_weights() -> None:
    """The same bfloat16 network in the plain loop: a state kept in bfloat16 would be 2^-8 away."""
    params = make_params(num_steps=6, sampler="dpmpp_2m")
    runner = make_runner(tiny_model(), dtype=torch.bfloat16)
    (task,) = place(*make_request(params).tasks)
    between = runner.pool.x[0]
    for task.step in range(6):
        between = runner.pool.x[0].clone()
        runner.execute([task])
    assert next(runner.model.parameters()).dtype == torch.bfloat16
    assert runner.pool.x.dtype == runner.pool.history.dtype == torch.float32
    assert not torch.equal(between, between.bfloat16().float())
    assert torch.equal(runner.pool.x[0], solo(runner.model, tiny_config(), params))


def test_the_hot_loop_keeps_its_memory() -> None:
    runner = make_runner(tiny_model())
    places = runner.pool.x.data_ptr(), runner.pool.history.data_ptr()
    runner.warm_up(6)
    for n in (1, 3, 2):
        run_to_end(runner, place(*make_request(make_params(seeds=tuple(range(n)))).tasks))
    assert (runner.pool.x.data_ptr(), runner.pool.history.data_ptr()) == places


def test_slots_of_others_are_left_alone() -> None:
    runner = make_runner(tiny_model())
    runner.pool.x.fill_(9.0)
    runner.pool.history.fill_(8.0)
    run_to_end(runner, place(*make_request(make_params(seeds=(1, 2))).tasks))
    assert (runner.pool.x[2:] == 9.0).all()
    assert (runner.pool.history[2:] == 8.0).all()
    assert not (runner.pool.x[:2] == 9.0).any()


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m_sde", "ab2"])
def test_an_earlier_occupant_of_a_slot_leaves_no_trace(rubbish: float, sampler: str) -> None:
    images = []
    for content in (0.0, rubbish):
        runner = make_runner(tiny_model())
        runner.pool.x.fill_(content)
        runner.pool.history.fill_(content)
        tasks = place(*make_request(make_params(sampler=sampler, guidance_scale=2.0)).tasks)
        images += run_to_end(runner, tasks).values()
    np.testing.assert_array_equal(images[0], images[1])


class NotANumber(nn.Module):
    num_classes = 10

    def __init__(self, where: str):
        super().__init__()
        self.where = where

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        bad = {"conditional": y == 3, "unconditional": y == 10}[self.where]
        return torch.where(bad[:, None, None, None], math.nan, x / 2)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("where", ["conditional", "unconditional"])
def test_nan_in_a_row_fails_only_its_image(where: str, position: int) -> None:
    runner = make_runner(NotANumber(where))
    sound = make_params(class_label=2, num_steps=1)
    poisoned = make_params(class_label=3, num_steps=1, guidance_scale=2.0)
    params = [sound, sound]
    params.insert(position, poisoned)
    tasks = place(*[make_request(each).tasks[0] for each in params])
    result = runner.execute(tasks)
    assert result.failed == {tasks[position]: "the model gave a non-finite image at step 1"}
    assert set(result.images) == set(tasks) - {tasks[position]}


def test_warm_up_runs_every_row_count() -> None:
    """The largest also as the first and the last step of a request."""
    model, progress = Watched(tiny_model()), []
    runner = make_runner(model)
    assert runner.warm_up(5, lambda: progress.append(min(runner.step_seconds, default=None))) == 5
    assert sorted(model.rows) == sorted([1, 2, 3, 4] * len(MIDDLE) + [5] * len(REHEARSED))
    assert progress == [None] * 5 + [5, 4, 3, 2, 1]
    assert all(seconds > 0 for seconds in runner.step_seconds.values())


@pytest.mark.parametrize("wanted", [None, 6], ids=["measured", "set"])
def test_warm_up_keeps_to_what_fits_into_memory(wanted: int | None) -> None:
    runner = make_runner(Cramped(3))
    assert runner.warm_up(wanted) == 3
    assert sorted(runner.step_seconds) == [1, 2, 3]


def test_warm_up_gives_up_where_no_guided_image_fits() -> None:
    with pytest.raises(ModelFailed, match="OutOfMemoryError"):
        make_runner(Cramped(1)).warm_up(6)


@pytest.mark.parametrize(
    ("limit", "counts"),
    [
        (2, [1, 2]),
        (16, list(range(1, 17))),
        (17, [*range(1, 17), 17]),
        (100, [*range(1, 17), 24, 32, 48, 64, 96, 100]),
    ],
    ids=str,
)
def test_row_counts_are_all_up_to_16_and_then_fewer(limit: int, counts: list[int]) -> None:
    assert row_counts(limit) == counts


class NoisyRunner(ModelRunner):
    """Its step times are random, as on a crowded machine."""

    def __init__(self, seed: int):
        super().__init__(tiny_model(), tiny_config(), CPU, torch.float32, max_rows=8)
        self.random = random.Random(seed)

    def _time_step(self, rows: int) -> float:
        return self.random.uniform(1.0, 10.0)


def test_the_cap_of_a_cpu_is_the_same_at_every_start() -> None:
    assert {NoisyRunner(seed).warm_up(None) for seed in range(20)} == {8}
    assert NoisyRunner(0).warm_up(7) == 7  # unless the operator sets it


def test_the_cap_of_another_device_is_at_the_knee_of_its_times() -> None:
    runner = SimulatedRunner(tiny_config(), StepCost(2.0, 1.0), max_rows=16)
    runner.step_seconds = {rows: runner.cost.seconds(rows) for rows in range(1, 17)}
    assert runner.choose_cap() == knee(runner.step_seconds) == 8


@pytest.mark.parametrize(
    ("curve", "cap"),
    [
        (dict.fromkeys(range(1, 11), 1.0), 8),  # rows are free: 80 % of the best is at 8 of 10
        ({rows: float(rows) for rows in range(1, 11)}, 2),  # rows gain nothing: the least that holds guidance
        ({rows: 2.0 + rows for rows in range(1, 17)}, 8),  # rows / (2 + rows): best 16/18, 80 % of it at 5
        ({1: 3.0, 2: 3.0, 3: 3.0}, 3),  # the largest count may be a cap, too
        ({rows: float(rows**2) for rows in range(1, 11)}, 2),
        ({1: 1.0, 2: 5.0, 3: 1.0, 4: 1.0}, 4),  # one slow count in between does not end the search
    ],
    ids=["free", "linear", "affine", "largest", "worse", "bump"],
)
def test_the_knee_is_the_least_count_that_gives_80_percent_of_the_best(curve: dict[int, float], cap: int) -> None:
    assert knee(curve) == cap


def test_seconds_are_those_of_the_next_row_count_that_was_measured() -> None:
    runner = make_runner(tiny_model())
    assert runner.seconds(3) == 0.0  # nothing is known yet
    runner.step_seconds = {4: 0.4, 1: 0.1, 2: 0.2}
    assert [runner.seconds(rows) for rows in (1, 2, 3, 4, 9)] == [0.1, 0.2, 0.4, 0.4, 0.4]


def test_the_idle_latency_counts_every_step_with_its_rows() -> None:
    runner = make_runner(tiny_model())
    runner.step_seconds = {1: 1.0, 2: 10.0, 4: 100.0}
    interval = (0.0, 0.6)  # noise times 1, 3/4, 1/2, 1/4: rows 1, 1, 2, 2
    one, two, five = (
        make_request(make_params(guidance_scale=2.0, guidance_interval=interval, seeds=tuple(range(n))))
        for n in (1, 2, 5)
    )
    assert runner.idle_seconds(one, max_rows=4) == 1 + 1 + 10 + 10
    assert runner.idle_seconds(two, max_rows=4) == 10 + 10 + 100 + 100
    assert runner.idle_seconds(five, max_rows=4) == 2 * (100 + 1) + 2 * (2 * 100 + 10)  # in turns


def test_a_runner_describes_its_device_dtype_and_backend() -> None:
    facts = {"device": "cpu", "dtype": "bfloat16", "backend": "torch"}
    assert make_runner(tiny_model(), dtype=torch.bfloat16).describe() == facts
