"""Images of mixed batches equal those of the plain loop, and a failure stays with its request."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.engine.request import Request, RequestStatus
from tests.service.engine.tiny import (
    Cramped,
    Watched,
    drive,
    make_params,
    make_request,
    picture_of,
    random_params,
    recording_runner,
    samplers_of,
    solo,
    tiny_config,
    tiny_model,
    warm_core,
)
from tests.service.pictures import difference

COMBINATIONS = 64
# Float32 of other batch shapes: a matrix product of another row count may add in another order (2^-24 relative
# each), and up to 12 steps with guidance of up to 4 carry that along: 2e-6 was seen.
LATENT_TOLERANCE = 2e-5
BOTH = pytest.mark.parametrize("architecture", ["dit", "unet"])


@pytest.mark.parametrize("architecture", ["dit", "unet", "few-dit", "few-unet"])
def test_64_random_requests_in_one_run_equal_their_plain_loops(architecture: str) -> None:
    rng = random.Random(64)
    config, model = tiny_config(architecture), tiny_model(architecture)
    watched = Watched(model)
    runner = recording_runner(watched, config)
    core = warm_core(runner, architecture)
    watched.rows.clear()
    requests = [
        make_request(random_params(rng, architecture, samplers_of(config)), config) for _ in range(COMBINATIONS)
    ]
    arrivals: dict[int, list[Request]] = {}
    for request in requests:
        arrivals.setdefault(rng.randrange(120), []).append(request)
    ended, steps = drive(core, arrivals)

    assert Counter(ended) == Counter(requests)
    assert {request.params.sampler for request in requests} == set(samplers_of(config))
    for request in requests:
        assert request.status is RequestStatus.FINISHED
        for index in range(len(request.tasks)):
            expected, latent = solo(model, config, request.params, index), runner.latents[request.request_id, index]
            torch.testing.assert_close(latent, expected, rtol=LATENT_TOLERANCE, atol=LATENT_TOLERANCE)
            assert difference(request.images[index], picture_of(expected, request.params)) <= 1, request.params
    # Ragged guidance: every forward has the rows that were scheduled, and in total those of the plans.
    assert watched.rows == [step.num_rows for step in steps]
    assert sum(watched.rows) == sum(sum(task.plan.rows) for request in requests for task in request.tasks)
    assert max(watched.rows) <= 6
    assert np.mean(watched.rows) > 4  # they did share forwards


@BOTH
@pytest.mark.parametrize(
    "changes",
    [
        {"class_label": 2},
        {"seeds": (6,)},
        {"num_steps": 9},
        {"sampler": "dpmpp_2m"},
        {"guidance_scale": 2.3},
        {"guidance_interval": (0.5, 1.0)},
        {"image": bytes(range(64)), "strength": 0.9},
        {"mask": bytes(32) + b"\1" * 32, "image": bytes(range(64))},
        {"mixtures": (((1, 0.9), (2, 0.1)),)},
        {"negative_label": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_comparison_would_see_a_mix_up(architecture: str, changes: dict) -> None:
    """One wrong setting moves an image of the tiny models far more than the tolerance."""
    config, model = tiny_config(architecture), tiny_model(architecture)
    usual = {"num_steps": 8, "sampler": "ddpm", "guidance_scale": 2.0}
    right = solo(model, config, make_params(architecture, **usual))
    wrong = solo(model, config, make_params(architecture, **(usual | changes)))
    assert (right - wrong).abs().max() > 100 * LATENT_TOLERANCE


@BOTH
@pytest.mark.parametrize(
    "other", [{"slerps": ((6, 0.2),)}, {"slerps": ((7, 0.1),)}, {}], ids=["far", "seed", "none"]
)
def test_the_comparison_would_see_another_way(architecture: str, other: dict) -> None:
    """Without noise on the way, which lets an image forget where it began."""
    config, model = tiny_config(architecture), tiny_model(architecture)
    right = solo(model, config, make_params(architecture, slerps=((6, 0.1),)))
    wrong = solo(model, config, make_params(architecture, **other))
    assert (right - wrong).abs().max() > 100 * LATENT_TOLERANCE


def test_a_newcomer_joins_the_next_forward() -> None:
    model = Watched(tiny_model())
    core = warm_core(recording_runner(model, tiny_config()))
    model.rows.clear()
    long, short = make_request(make_params(num_steps=40)), make_request(make_params(num_steps=3))
    ended, _ = drive(core, {0: [long], 10: [short]})
    assert ended == [short, long]
    assert model.rows == [1] * 10 + [2] * 3 + [1] * 27


class Failing(nn.Module):
    """Fails below a timestep whenever a row has this label."""

    num_classes, label = 10, 7

    def __init__(self, inner: nn.Module, failure: str, below: float = 2000.0):
        super().__init__()
        self.inner, self.failure, self.below = inner, failure, below

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        bad = (y == self.label) & (t < self.below)
        if self.failure == "raises" and bad.any():
            raise ArithmeticError("label 7")
        value = math.inf if self.failure == "inf" else math.nan
        return torch.where(bad[:, None, None, None], value, self.inner(x, t, y))


def params_of(i: int) -> dict:
    samplers = ["dpmpp_2m", "ddpm", "dpmpp_2m_sde", "ab2"]  # with history, with noise, with both
    return {"num_steps": 8 + i, "sampler": samplers[i], "guidance_scale": 1.0 + i % 2, "seeds": (i,)}


@pytest.mark.parametrize("below", [2000.0, 600.0], ids=["at-once", "half-way"])
@pytest.mark.parametrize("failure", ["raises", "nan", "inf"])
def test_a_failing_request_leaves_the_others_unchanged(failure: str, below: float) -> None:
    config, sound = tiny_config(), tiny_model()
    core = warm_core(recording_runner(Failing(sound, failure, below), config), max_rows=8)
    others = [make_request(make_params(**params_of(i))) for i in range(4)]
    failing = make_request(make_params(class_label=7, num_steps=8, seeds=(1, 2)))
    ended, _ = drive(core, {0: others[:2], 1: [failing], 3: others[2:]})
    assert Counter(ended) == Counter([*others, failing])
    assert ended[0] is failing
    assert failing.status is RequestStatus.FAILED
    step = 1 if below > 1000 else 5  # trailing: timesteps 1000, 875, 750, 625, 500, ...
    raised, infinite = "the model raised ArithmeticError", f"non-finite image at step {step}"
    assert failing.error == raised if failure == "raises" else failing.error.endswith(infinite)
    for request in others:
        assert request.status is RequestStatus.FINISHED
        expected = picture_of(solo(sound, config, request.params), request.params)
        assert difference(request.images[0], expected) <= 1


def test_a_forward_that_is_only_too_large_fails_no_request_and_advances_each_image_once() -> None:
    config, sound = tiny_config(), tiny_model()
    watched = Watched(sound)
    model = Cramped(6, watched, MemoryError)
    core = warm_core(recording_runner(model, config))
    model.room = 2
    watched.rows.clear()
    requests = [make_request(make_params(**params_of(i))) for i in range(4)]
    drive(core, {0: requests})
    for request in requests:
        assert request.status is RequestStatus.FINISHED, request.error
        assert difference(request.images[0], picture_of(solo(sound, config, request.params), request.params)) <= 1
    assert sum(watched.rows) == sum(sum(request.plan.rows) for request in requests)


def test_nan_in_a_slot_does_not_reach_its_next_image() -> None:
    config, sound = tiny_config(), tiny_model()
    core = warm_core(recording_runner(Failing(sound, "nan"), config), max_rows=2)
    failing = make_request(make_params(class_label=7, num_steps=4, seeds=(1, 2)))
    later = [make_request(make_params(sampler="dpmpp_2m", num_steps=5, seeds=(seed,))) for seed in (3, 4)]
    drive(core, {0: [failing], 1: later})
    assert failing.status is RequestStatus.FAILED
    for request in later:
        assert request.status is RequestStatus.FINISHED
        assert difference(request.images[0], picture_of(solo(sound, config, request.params), request.params)) <= 1
