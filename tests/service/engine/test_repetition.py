"""The deterministic mode: the same bits alone, in any batch, at any slot, in any order of arrival."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from service.engine.repetition import find_fixed_rows, repeats_itself
from service.engine.request import Request
from service.engine.runner import ModelRunner
from tests.service.engine.tiny import (
    CPU,
    drive,
    make_params,
    make_request,
    random_params,
    recording_runner,
    tiny_config,
    tiny_model,
    warm_core,
)

ROWS = 8
BOTH = pytest.mark.parametrize("architecture", ["dit", "unet"])


def requests(architecture: str, seed: int) -> list[Request]:
    """Every third one is not deterministic, and shares their steps."""
    rng = random.Random(seed)
    made = []
    for i in range(9):
        params = random_params(rng, architecture, ["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde"])
        made.append(make_request(replace(params, deterministic=i % 3 != 2)))
    return made


def latents_of(architecture: str, everyone: list[Request], arrivals: dict[int, list[Request]]) -> dict[int, Tensor]:
    """Final latents of all images by place in the list and index."""
    runner = recording_runner(tiny_model(architecture), tiny_config(architecture), ROWS)
    drive(warm_core(runner, architecture, ROWS), arrivals)
    return {
        100 * place + index: runner.latents[request.request_id, index]
        for place, request in enumerate(everyone)
        for index in range(len(request.tasks))
        if request.params.deterministic
    }


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_the_same_bits_in_any_order_of_arrival(architecture: str, seed: int) -> None:
    alone = requests(architecture, 0)
    one_by_one = {200 * i: [request] for i, request in enumerate(alone)}  # each is gone before the next one comes
    expected = latents_of(architecture, alone, one_by_one)
    rng, together = random.Random(seed), requests(architecture, 0)
    arrivals: dict[int, list[Request]] = {}
    for request in rng.sample(together, len(together)):
        arrivals.setdefault(rng.randrange(15), []).append(request)
    found = latents_of(architecture, together, arrivals)
    assert found.keys() == expected.keys()
    assert len(found) > 6
    for key, latent in found.items():
        assert torch.equal(latent, expected[key]), key


def test_a_step_with_a_deterministic_image_is_full() -> None:
    runner = recording_runner(tiny_model(), tiny_config(), ROWS)
    core = warm_core(runner, max_rows=ROWS)
    usual, fixed = (
        make_request(make_params(num_steps=4)),
        make_request(make_params(num_steps=2, deterministic=True)),
    )
    _, steps = drive(core, {0: [usual], 1: [fixed]})
    assert [(step.num_rows, step.num_padding_rows) for step in steps] == [(1, 0), (2, 6), (2, 6), (1, 0)]


def test_a_deterministic_request_has_the_idle_latency_of_full_steps() -> None:
    runner = recording_runner(tiny_model(), tiny_config(), ROWS)
    runner.step_seconds = {1: 1.0, 2: 2.0, 8: 10.0}
    one, five = (
        make_request(make_params(num_steps=3, guidance_scale=2.0, seeds=tuple(range(n)), deterministic=True))
        for n in (1, 5)
    )
    assert runner.idle_seconds(one, ROWS) == 3 * 10
    assert runner.idle_seconds(five, ROWS) == 2 * 3 * 10  # ten rows take turns


class Sociable(nn.Module):
    """A row's output depends on the mean of its batch."""

    num_classes = 10

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return x / 2 + 1e-6 * x.mean()


class Particular(nn.Module):
    """A row's output depends on its place."""

    num_classes = 10

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return x / 2 + 1e-6 * torch.arange(len(x)).view(-1, 1, 1, 1)


@pytest.mark.parametrize("model", [Sociable(), Particular()], ids=["neighbours", "place"])
def test_a_model_that_does_not_repeat_itself_is_found_out(model: nn.Module) -> None:
    assert not repeats_itself(ModelRunner(model, tiny_config(), CPU, torch.float32, ROWS))


class FourByFour(nn.Module):
    """The last rows of a count that is no multiple of four are computed otherwise."""

    num_classes = 10

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        tail = torch.arange(len(x)) >= len(x) // 4 * 4
        return x / 2 + 1e-6 * tail.view(-1, 1, 1, 1)


@pytest.mark.parametrize(("cap", "fixed"), [(8, 8), (6, 8), (13, 16), (3, 3)])
def test_a_row_count_that_repeats_itself_is_found(cap: int, fixed: int) -> None:
    runner = ModelRunner(FourByFour(), tiny_config(), CPU, torch.float32, 16)
    assert find_fixed_rows(runner, cap) == runner.fixed_rows == fixed


def test_the_cap_stays_where_no_row_count_repeats_itself() -> None:
    runner = ModelRunner(Sociable(), tiny_config(), CPU, torch.float32, 16)
    assert find_fixed_rows(runner, 6) is None
    assert runner.fixed_rows == 6


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_networks_repeat_themselves_here(architecture: str, dtype: torch.dtype) -> None:
    runner = ModelRunner(tiny_model(architecture), tiny_config(architecture), CPU, dtype, ROWS)
    assert repeats_itself(runner)
