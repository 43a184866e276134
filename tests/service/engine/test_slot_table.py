"""What the host looks up by slot, against the tasks and their plans."""

import random

import numpy as np
import pytest

from service.engine.request import ImageTask
from service.engine.slot_table import LEAST_ROWS, SlotTable
from tests.service.engine.tiny import make_params, make_request, random_params


def placed(task: ImageTask, slot: int, step: int = 0) -> ImageTask:
    task.slot, task.step = slot, step
    return task


def test_random_images_are_found_by_their_slots() -> None:
    """Images come and go; a slot with a new image is written anew."""
    rng, table, held = random.Random(0), SlotTable(12), dict[int, ImageTask]()
    for _ in range(200):
        slot = rng.randrange(12)
        task = make_request(
            random_params(rng, "dit", ["ddim", "ddpm", "dpmpp_2m"]), num_previews=rng.choice([0, 2])
        ).tasks[0]
        held[slot] = placed(task, slot, rng.randrange(task.last_step + 1))
        tasks = rng.sample(list(held.values()), rng.randint(1, len(held)))
        found = table.look_up(tasks)
        for place, task in enumerate(tasks):
            plan, request = task.plan, task.request
            assert (found.slots[place], found.steps[place]) == (task.slot, task.step)
            assert (found.seeds[place], found.labels[place]) == (task.seed, task.class_label)
            assert np.array_equal(found.numbers[place], plan.numbers[task.step])
            assert found.guided[place] == (task.rows == plan.classes + 1)
            further = found.further.places == place
            assert list(found.further.labels[further]) == [label for label, _ in task.mixture[1:]]
            assert (place in found.begun) == (task.slerp[1] > 0 and task.step == 0)
            assert found.shown[place] == (task.step == task.last_step or task.step in request.preview_steps)
        assert found.num_rows == sum(task.rows for task in tasks)


def test_the_arrays_are_those_of_the_launch() -> None:
    """The tasks advance while their step is on the device."""
    task = placed(make_request(make_params(num_steps=2)).tasks[0], 0)
    found = SlotTable(1).look_up([task])
    task.step, task.slot = 1, None
    assert (found.steps.tolist(), found.slots.tolist(), found.shown.tolist()) == ([0], [0], [False])


def test_a_deterministic_image_is_seen_while_it_holds_its_slot() -> None:
    table = SlotTable(2)
    fixed = placed(make_request(make_params(deterministic=True)).tasks[0], 1)
    usual, later = (placed(make_request(make_params()).tasks[0], slot) for slot in (0, 1))
    assert table.look_up([usual, fixed]).is_deterministic
    assert not table.look_up([usual]).is_deterministic
    assert not table.look_up([usual, later]).is_deterministic


@pytest.mark.parametrize("num_steps", [100, 250])
def test_plans_of_images_that_have_left_make_room(num_steps: int) -> None:
    """Thousands of different plans pass through; the table keeps those in use, and as much room again."""
    table = SlotTable(8)
    stays = placed(make_request(make_params(num_steps=num_steps, guidance_scale=9.0)).tasks[0], 0, 7)
    for number in range(60):
        guidance = 1.0 + number / 100
        comes = placed(
            make_request(make_params(num_steps=num_steps, guidance_scale=guidance)).tasks[0], 1 + number % 7, 3
        )
        found = table.look_up([stays, comes])
        for place, task in enumerate((stays, comes)):
            assert np.array_equal(found.numbers[place], task.plan.numbers[task.step])
    assert len(table._numbers) <= max(LEAST_ROWS, 2 * 9 * num_steps)


def test_a_step_may_have_no_images() -> None:
    found = SlotTable(3).look_up([])
    assert (found.num_rows, found.is_deterministic, len(found.shown)) == (0, False, 0)
