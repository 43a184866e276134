"""What the engine reports of each step equals the plain loop, and reporting it changes nothing else."""

import asyncio
import random
from collections import defaultdict
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.engine.core import EngineConfig, EngineCore
from service.engine.request import Request, RequestStatus
from service.wire import clients
from service.wire.messages import Preview, RequestOutput, TrajectoryPoint
from tests.service.engine.desk import make_core, rigged
from tests.service.engine.test_graphs import graph_runner
from tests.service.engine.test_mixed_batch import LATENT_TOLERANCE
from tests.service.engine.tiny import (
    Turnstile,
    Watched,
    make_params,
    make_request,
    random_params,
    recording_runner,
    samplers_of,
    solo,
    stepping,
    tiny_config,
    tiny_model,
    warm_core,
)

Points = dict[tuple[str, int], list[TrajectoryPoint]]  # by request and image


def walk(model: nn.Module, request: Request, index: int) -> list[tuple[Tensor, Tensor]]:
    """x and denoised image [C, H, W] after each step, by the plain loop."""
    params, config = request.params, tiny_config(request.params.model)
    table, found = config.table(params.sampler, params.num_steps, params.spacing, params.strength), []

    def watch(step: int, x: Tensor, d: Tensor) -> None:
        of_x, of_d = table.preview[step].tolist()
        found.append((x[0].clone(), (of_x * x + of_d * d)[0]))

    solo(model, config, params, index, watch)
    return found


def run(core: EngineCore, arrivals: dict[int, list[Request]]) -> tuple[Points, list[Request]]:
    points: Points = defaultdict(list)
    ended: list[Request] = []
    for progress in stepping(core, arrivals):
        ended += progress.ended
        for request, point in progress.points:
            points[request.request_id, point.index].append(point)
    return points, ended


def array(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.float32).view(1, 8, 8)


def check(model: nn.Module, request: Request, points: Points) -> None:
    params = request.params
    table = tiny_config(params.model).table(params.sampler, params.num_steps, params.spacing, params.strength)
    for index in range(len(request.tasks)):
        told = points[request.request_id, index]
        assert [point.step for point in told] == list(range(params.num_steps))
        assert [point.time for point in told] == pytest.approx((table.rows[:, 0] / 1000).tolist())
        assert [point.noise_scale for point in told] == pytest.approx(table.rows[:, 6].tolist())
        assert told[0].level == pytest.approx(table.levels[0].tolist(), abs=1e-6)
        assert params.strength < 1 or told[0].level[0] < 2e-4
        for point, (x, denoised) in zip(told, walk(model, request, index), strict=True):
            for told_one, right in ((point.x, x), (point.denoised, denoised)):
                torch.testing.assert_close(array(told_one), right, rtol=LATENT_TOLERANCE, atol=LATENT_TOLERANCE)


@pytest.mark.parametrize("architecture", ["dit", "unet", "few-dit", "few-unet"])
def test_trajectories_in_any_company_are_those_of_the_plain_loop(architecture: str) -> None:
    """Every sampler, guided or not, with images, and every second request asks for none."""
    rng, config, model = random.Random(3), tiny_config(architecture), tiny_model(architecture)
    core = warm_core(recording_runner(model, config), architecture)
    samplers = samplers_of(config)
    drawn = [random_params(rng, architecture, [samplers[i // 2 % len(samplers)]]) for i in range(4 * len(samplers))]
    everyone = [
        make_request(replace(params, trajectory=i % 2 == 0, deterministic=i % 5 == 0), config)
        for i, params in enumerate(drawn)
    ]
    points, ended = run(core, {3 * i: [request] for i, request in enumerate(everyone)})
    assert len(ended) == len(everyone)
    asked = [request for request in everyone if request.params.trajectory]
    assert {name for name, _ in points} == {request.request_id for request in asked}
    assert {request.params.sampler for request in asked} == set(samplers)
    assert any(request.params.guidance_scale > 1 for request in asked)
    assert any(request.params.image for request in asked)
    for request in asked:
        check(model, request, points)


@pytest.mark.parametrize("architecture", ["dit", "unet"])
def test_a_runner_that_is_a_step_ahead_reports_the_step_and_not_the_next_one(architecture: str) -> None:
    core = EngineCore({architecture: graph_runner(architecture)}, EngineConfig(6))
    core.warm_up(architecture)
    how = [("ddpm", 2.0, True), ("dpmpp_2m", 1.0, True), ("ab2", 1.0, False), ("ab2", 2.0, True)]
    everyone = [
        make_request(
            make_params(architecture, num_steps=5 + i, seeds=(i, 9), trajectory=told, sampler=s, guidance_scale=w)
        )
        for i, (s, w, told) in enumerate(how)
    ]
    points, ended = run(core, {i: [request] for i, request in enumerate(everyone)})
    assert len(ended) == 4
    assert len(points) == 6
    for request in everyone:
        if request.params.trajectory:
            check(core.runners[architecture].model, request, points)


@pytest.mark.parametrize("told", [False, True])
def test_a_step_without_such_an_image_copies_nothing(told: bool) -> None:
    """Also where the slot's last occupant had asked for it."""
    runner = recording_runner(tiny_model(), tiny_config())
    for trajectory in (True, told):
        (task,) = make_request(make_params(num_steps=3, trajectory=trajectory)).tasks
        task.slot = 0
        launched = runner.launch([task])
    assert (launched._states is not None) == told
    assert len(launched.collect().points) == told


def test_a_trajectory_changes_no_image() -> None:
    def latents(trajectory: bool) -> list[Tensor]:
        runner = recording_runner(tiny_model(), tiny_config())
        core = warm_core(runner)
        runner.latents.clear()
        run(
            core, {i: [make_request(make_params(num_steps=5, seeds=(i,), trajectory=trajectory))] for i in range(4)}
        )
        return list(runner.latents.values())

    for plain, told in zip(latents(False), latents(True), strict=True):
        assert torch.equal(plain, told)


def test_images_with_and_without_a_trajectory_share_their_forwards() -> None:
    model = Watched(tiny_model())
    core = warm_core(recording_runner(model, tiny_config()))
    model.rows.clear()
    asked = [make_request(make_params(seeds=(i,), num_steps=5, trajectory=i > 0)) for i in range(3)]
    run(core, {0: asked})
    assert model.rows == [3] * 5


class Failing(Turnstile):
    """Raises for class 3, and gives NaN for class 4."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if (y == 3).any() and (t < 600).any():
            raise ArithmeticError
        return super().forward(x, t, y) * torch.where(y == 4, torch.nan, 1.0)[:, None, None, None]


def test_a_failing_image_reports_no_more_and_the_others_report_all() -> None:
    core = warm_core(recording_runner(Failing(), tiny_config()))
    good, raising, broken = (make_request(make_params(class_label=i, trajectory=True)) for i in (1, 3, 4))
    points, ended = run(core, {0: [good, raising, broken]})
    assert len(ended) == 3
    assert (good.status, raising.status) == (RequestStatus.FINISHED, RequestStatus.FAILED)
    assert len(points[good.request_id, 0]) == 4
    assert len(points[raising.request_id, 0]) < 4
    assert points[broken.request_id, 0] == []


def test_an_image_that_is_aborted_on_the_device_reports_no_more() -> None:
    core = EngineCore({"dit": graph_runner()}, EngineConfig(4))
    core.warm_up("dit")
    gone = make_request(make_params(trajectory=True, num_steps=9))
    core.add(gone)
    core.step()
    core.abort(gone.request_id)
    points, _ = run(core, {0: [make_request(make_params(seeds=(1,)))]})
    assert points == {}


@pytest.mark.parametrize("kept", [False, True])
def test_a_worker_that_reads_slowly_misses_only_what_may_be_dropped(
    monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    monkeypatch.setattr(clients, "MAX_UNSENT", -1)  # as if more than that always waited

    async def client() -> list[Preview | TrajectoryPoint | RequestOutput]:
        params = make_params(num_steps=6, seeds=(1, 2), trajectory=True)
        async with rig.client() as engine, aclosing(engine.generate(params, None, 5, kept)) as updates:
            return [update async for update in updates]

    with rigged(make_core(Turnstile())) as rig:
        *on_the_way, last = asyncio.run(client())
    assert isinstance(last, RequestOutput)
    points = [(update.step, update.index) for update in on_the_way if isinstance(update, TrajectoryPoint)]
    assert sorted(points) == [(step, index) for step in range(6) for index in range(2)]
    previews = [(update.step, update.index) for update in on_the_way if isinstance(update, Preview)]
    assert sorted(previews) == ([(step, index) for step in range(1, 6) for index in range(2)] if kept else [])


def test_x_of_the_last_step_is_the_picture() -> None:
    core = warm_core(recording_runner(tiny_model(), tiny_config()))
    request = make_request(make_params(trajectory=True, sampler="ab2"))
    points, _ = run(core, {0: [request]})
    last = points[request.request_id, 0][-1]
    assert last.x == last.denoised
    picture = ((array(last.x).clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(picture - request.images[0]).max() == 0
