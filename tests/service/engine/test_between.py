"""Images of several classes take more rows of a step: what that means for admission, order and a lack of memory."""

from typing import Any

import pytest
import torch
from torch import Tensor

from service.engine import canvas
from service.engine.order import LeastSlack
from service.engine.request import Request, RequestStatus
from service.errors import InvalidRequest
from service.wire.messages import Mixture
from tests.service.engine.tiny import (
    Cramped,
    Watched,
    drive,
    make_params,
    make_request,
    picture_of,
    recording_runner,
    solo,
    tiny_config,
    tiny_model,
    warm_core,
)
from tests.service.pictures import difference

TWO: Mixture = ((1, 0.5), (8, 0.5))
FOUR: Mixture = ((1, 0.4), (2, 0.3), (3, 0.2), (4, 0.1))


def request_of(*mixtures: Mixture, **changes: Any) -> Request:
    labels = tuple(mixture[0][0] if mixture else 1 for mixture in mixtures)
    seeds = tuple(range(len(mixtures)))
    return make_request(make_params(class_labels=labels, mixtures=mixtures, seeds=seeds, **changes))


def test_rows_count_the_classes_of_each_image() -> None:
    request = request_of((), TWO, FOUR, num_steps=4, guidance_scale=2.0, guidance_interval=(0.4, 0.8))
    assert [task.plan.rows for task in request.tasks] == [(1, 2, 2, 1), (2, 3, 3, 2), (4, 5, 5, 4)]
    assert (request.remaining_rows, request.most_rows) == (6 + 10 + 18, 5)
    assert request.steps_by_rows == {1 + 2 + 4: 2, 2 + 3 + 5: 2}
    plain = make_request(make_params(num_steps=4, seeds=(1, 2)))
    assert (plain.steps_by_rows, plain.most_rows) == ({2: 4}, 1)


def test_an_idle_engine_needs_the_time_of_all_rows() -> None:
    runner = recording_runner(tiny_model(), tiny_config())
    runner.step_seconds = {rows: float(rows) for rows in range(1, 7)}
    assert runner.idle_seconds(request_of(TWO, num_steps=3), 6) == 3 * 2.0
    assert runner.idle_seconds(request_of(FOUR, FOUR, num_steps=3), 6) == 3 * (6.0 + 2.0)


def test_an_image_that_fits_no_step_is_refused() -> None:
    core = warm_core(recording_runner(tiny_model(), tiny_config()), max_rows=4)
    core.add(request_of(FOUR))
    with pytest.raises(InvalidRequest, match="class: an image needs 5 rows of a step, which has at most 4 here"):
        core.add(request_of(FOUR, guidance_scale=2.0))


def test_one_class_has_the_bits_of_a_plain_request() -> None:
    runner = recording_runner(tiny_model(), tiny_config())
    core = warm_core(runner)
    how = {"class_label": 3, "sampler": "ddpm", "guidance_scale": 2.0}
    plain, other = (
        make_request(make_params(**how)),
        make_request(make_params(**how, mixtures=((),), slerps=((9, 0.0),))),
    )
    for request in (plain, other):
        drive(core, {0: [request]})
    assert torch.equal(runner.latents[plain.request_id, 0], runner.latents[other.request_id, 0])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For how many images noise was drawn on a canvas, by call."""
    counts: list[int] = []
    first_noise = canvas.first_noise

    def counted(seeds: Tensor, *more: Any) -> Tensor:
        counts.append(len(seeds))
        return first_noise(seeds, *more)

    monkeypatch.setattr(canvas, "first_noise", counted)
    return counts


def test_only_images_between_two_seeds_draw_more_noise(drawn: list[int]) -> None:
    core = warm_core(recording_runner(tiny_model(), tiny_config()))
    drive(core, {0: [request_of(TWO, FOUR), make_request(make_params(guidance_scale=2.0, negative_label=4))]})
    assert drawn == []
    drive(core, {0: [make_request(make_params(seeds=(1, 2, 3), slerps=((9, 0.0), (9, 0.5), (9, 0.7))))]})
    assert drawn == [2]  # at the first step of three images, and the one at 0 is as any other


def test_what_an_image_keeps_is_sent_and_drawn_once(drawn: list[int]) -> None:
    core = warm_core(recording_runner(tiny_model(), tiny_config()))
    kept = {"image": bytes(64), "mask": bytes([1, 0] * 32), "num_steps": 5}
    drive(core, {0: [make_request(make_params(seeds=(1, 2), **kept))], 3: [make_request(make_params(**kept))]})
    assert drawn == [2, 1]  # not at each of their steps


def test_a_lack_of_memory_leaves_a_cap_that_holds_every_accepted_image() -> None:
    """Half of the six rows would be three, and an accepted image needs four: it would wait for ever."""
    sound = tiny_model()
    model = Cramped(6, sound)
    core = warm_core(recording_runner(model, tiny_config()))
    model.room = 5
    four, plain = request_of(FOUR, num_steps=6), make_request(make_params(num_steps=6, guidance_scale=2.0))
    ended, _ = drive(core, {0: [four, plain]})
    assert set(ended) == {four, plain}
    assert core.shares["dit"].scheduler.max_rows == 4
    for request in ended:
        assert request.status is RequestStatus.FINISHED, request.error
        expected = picture_of(solo(sound, tiny_config(), request.params), request.params)
        assert difference(request.images[0], expected) <= 1


def test_the_oldest_of_the_overdue_goes_on_with_all_its_rows() -> None:
    late, others = request_of(FOUR, guidance_scale=2.0), [make_request(make_params()) for _ in range(6)]
    for request in (late, *others):
        request.idle_seconds = 1.0
    late.arrived = -1000.0
    chosen = LeastSlack().choose([late, *others], max_rows=6, places=10, now=0.0)
    assert late.tasks[0] in chosen
    assert sum(task.rows for task in chosen) == 6


def test_mixtures_share_forwards_with_all_others() -> None:
    model = Watched(tiny_model())
    core = warm_core(recording_runner(model, tiny_config()))
    model.rows.clear()
    mixed, plain = request_of(TWO, guidance_scale=2.0), make_request(make_params())
    drive(core, {0: [mixed, plain]})
    assert model.rows == [4] * 4
