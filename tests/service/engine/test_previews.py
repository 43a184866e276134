"""Previews: which steps are shown, what they show, and that showing them changes nothing."""

import asyncio

import pytest
import torch
from torch import Tensor, nn

from models.samplers import PLAIN
from service.engine.request import preview_steps
from service.wire.async_engine import pixels
from service.wire.messages import Preview, RequestOutput, TrajectoryPoint
from tests.service.engine.desk import make_core, rigged
from tests.service.engine.tiny import (
    Turnstile,
    drive,
    make_params,
    make_request,
    recording_runner,
    stepping,
    tiny_config,
    tiny_model,
    warm_core,
)
from tests.waiting import wait_until

POINT = 0.6  # every pixel of the one image that PointMass knows


class PointMass(nn.Module):
    """Predicts the clean image exactly, for data that is a single image: so does every preview then."""

    num_classes = 10

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(x, POINT)


@pytest.mark.parametrize(
    ("count", "num_steps", "expected"),
    [
        (0, 10, set()),
        (1, 10, {4}),
        (4, 10, {1, 3, 5, 7}),
        (9, 10, set(range(9))),
        (64, 10, set(range(9))),
        (64, 1, set()),
        (2, 1, set()),
    ],
)
def test_previews_are_spread_evenly_and_never_the_last_step(count: int, num_steps: int, expected: set[int]) -> None:
    assert preview_steps(count, num_steps) == expected


@pytest.mark.parametrize("sampler", PLAIN)
def test_an_exact_model_shows_its_image_at_every_step(sampler: str) -> None:
    core = warm_core(recording_runner(PointMass(), tiny_config()))
    request = make_request(make_params(num_steps=6, sampler=sampler), num_previews=64)
    previews = [preview for progress in stepping(core, {0: [request]}) for _, preview in progress.previews]
    assert [preview.step for preview in previews] == [1, 2, 3, 4, 5]
    expected = round((POINT + 1) * 127.5)
    for preview in previews:
        assert pixels(preview).shape == (8, 8, 1)
        assert (abs(pixels(preview).astype(int) - expected) <= 1).all(), (sampler, preview.step)


def test_the_velocity_sampler_shows_images_on_the_cosine_schedule_too() -> None:
    """There d is dx/d(angle), so d itself would be a wrong preview."""

    class Velocity(PointMass):
        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            u = (t / 1000).double()
            alpha, sigma = (f(u * torch.pi / 2)[:, None, None, None] for f in (torch.cos, torch.sin))
            return ((alpha * x - POINT) / sigma).float()  # v, of x = alpha x0 + sigma eps

    core = warm_core(recording_runner(Velocity(), tiny_config("unet")), "unet")
    request = make_request(make_params("unet", num_steps=40, sampler="ab2"), num_previews=4)
    images = [pixels(preview) for progress in stepping(core, {0: [request]}) for _, preview in progress.previews]
    expected = round((POINT + 1) * 127.5)
    errors = [float(abs(image.astype(int) - expected).mean()) for image in images]
    assert len(errors) == 4
    assert max(errors) < 6, errors


@pytest.mark.parametrize("architecture", ["dit", "unet"])
def test_previews_change_no_image(architecture: str) -> None:
    def latents(num_previews: int) -> list[Tensor]:
        runner = recording_runner(tiny_model(architecture), tiny_config(architecture))
        core = warm_core(runner, architecture)
        runner.latents.clear()
        asked = (make_params(architecture, num_steps=5, seeds=(i,)) for i in range(4))
        drive(core, {i: [make_request(params, num_previews=num_previews)] for i, params in enumerate(asked)})
        return list(runner.latents.values())

    for plain, watched in zip(latents(0), latents(3), strict=True):
        assert torch.equal(plain, watched)


def test_the_engine_yields_previews_and_then_the_images() -> None:
    async def client() -> list[Preview | TrajectoryPoint | RequestOutput]:
        params = make_params(num_steps=4, seeds=(1, 2))
        async with rig.client() as engine:
            return [update async for update in engine.generate(params, num_previews=2)]

    with rigged(make_core(Turnstile())) as rig:
        *previews, output = asyncio.run(client())
    shown = [(preview.step, preview.index) for preview in previews if isinstance(preview, Preview)]
    assert shown == [(1, 0), (1, 1), (3, 0), (3, 1)]
    assert isinstance(output, RequestOutput)
    assert len(pixels(output)) == 2


def test_pictures_of_one_forward_have_its_number() -> None:
    core = warm_core(recording_runner(tiny_model("dit"), tiny_config()))
    long = make_request(make_params(num_steps=6, sampler="ddim"), num_previews=64)
    short = make_request(make_params(num_steps=3, sampler="dpmpp_2m", guidance_scale=2.0), num_previews=64)
    shown = [preview for progress in stepping(core, {0: [long], 1: [short]}) for preview in progress.previews]
    first = shown[0][1].forward
    numbers = {request: [p.forward - first for who, p in shown if who is request] for request in (long, short)}
    assert numbers == {long: [0, 1, 2, 3, 4], short: [1, 2]}
    assert [request.tasks[0].forward - first for request in (long, short)] == [5, 3]


def test_two_engines_count_from_different_numbers() -> None:
    """They may be replicas of one address, and their pictures must not seem to share a forward."""
    numbers = []
    for _ in range(2):
        core, request = warm_core(recording_runner(tiny_model("dit"), tiny_config())), make_request(make_params())
        drive(core, {0: [request]})
        numbers.append(request.tasks[0].forward)
    assert abs(numbers[0] - numbers[1]) > 1000


def test_a_client_that_leaves_between_two_previews_frees_its_slot() -> None:
    async def client() -> None:
        async with rig.client() as engine:
            updates = engine.generate(make_params(num_steps=200), num_previews=10)
            await anext(updates)
            await updates.aclose()
            await asyncio.sleep(0)  # the message leaves with the next turn of the event loop

    with rigged(make_core(Turnstile())) as rig:
        asyncio.run(client())
        wait_until(lambda: bool(rig.recorder.spared_evaluations))
        (spared,) = rig.recorder.spared_evaluations
    assert spared > 0


def test_a_broken_image_is_never_shown() -> None:
    class Broken(Turnstile):
        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return super().forward(x, t, y) * torch.where(y == 3, torch.nan, 1.0)[:, None, None, None]

    core = warm_core(recording_runner(Broken(), tiny_config()))
    good, bad = (make_request(make_params(class_label=label), num_previews=9) for label in (1, 3))
    shown = [request for progress in stepping(core, {0: [good, bad]}) for request, _ in progress.previews]
    assert shown == [good] * 3
    assert (list(good.images), list(bad.images)) == ([0], [])
    assert good.images[0].any()
