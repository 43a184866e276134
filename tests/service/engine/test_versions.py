"""Two versions of one model in an engine: no image is made by two networks, and the old one leaves no trace."""

import gc
import random
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from service.engine.cards import describe, signature
from service.engine.core import EngineCore
from service.engine.request import Request, RequestStatus
from service.engine.runner import ModelRunner
from service.engine.versions import key, leave, switch
from tests.service.engine.test_graphs import graph_runner
from tests.service.engine.tiny import (
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

CONFIG = tiny_config()
each_runner = pytest.mark.parametrize(
    "make", [lambda: recording_runner(tiny_model(), CONFIG), graph_runner], ids=["plain", "graphs"]
)


def other_model(seed: int) -> nn.Module:
    """The same network with other weights."""
    model = tiny_model()
    torch.manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.12)
    return model


def swap(core: EngineCore, model: nn.Module) -> None:
    runner = core.runners["dit"].successor(model, CONFIG)
    for rows in sorted(runner.step_seconds, reverse=True):
        runner.prepare(rows)
    switch(core, "dit", runner, core.runners["dit"].version + 1)


def picture(model: nn.Module, request: Request) -> list[list[int]]:
    params = request.params
    return [picture_of(solo(model, CONFIG, params, i), params).tolist() for i in range(len(params.seeds))]


def is_of(model: nn.Module, request: Request) -> bool:
    """Up to one level of 255, which other row counts may cost."""
    wanted = torch.tensor(picture(model, request))
    got = torch.stack([torch.from_numpy(request.images[i].copy()) for i in range(len(request.tasks))])
    return bool((wanted - got).abs().max() <= 1)


@each_runner
def test_a_request_keeps_the_version_that_admitted_it(make: Callable[[], ModelRunner]) -> None:
    core, new = warm_core(make()), other_model(1)
    before, after = (make_request(make_params(num_steps=6, seeds=(5, 6))) for _ in range(2))
    core.add(before)
    for _ in range(3):
        core.step()
    swap(core, new)
    core.add(after)
    _, steps = drive(core)
    assert is_of(tiny_model(), before)
    assert is_of(new, after)
    assert not is_of(tiny_model(), after)
    assert {step.model for step in steps} == {"dit"}


@each_runner
def test_random_arrivals_and_swaps_never_mix_two_networks(make: Callable[[], ModelRunner]) -> None:
    rng = random.Random(3)
    samplers = samplers_of(CONFIG)
    core = warm_core(make())
    networks: list[nn.Module] = [tiny_model()]
    asked: list[tuple[Request, nn.Module]] = []
    while len(networks) < 4:
        if rng.random() < 0.3:
            request = make_request(random_params(rng, "dit", samplers))
            core.add(request)
            asked.append((request, networks[-1]))
        if len(core.runners) == 2:
            leave(core, "dit")
        elif rng.random() < 0.1:
            networks.append(other_model(len(networks)))
            swap(core, networks[-1])
        core.step()
    drive(core)
    assert {networks.index(network) for _, network in asked} == {0, 1, 2}
    assert all(is_of(network, request) for request, network in asked)


@each_runner
def test_a_version_leaves_when_its_last_request_has_ended_and_takes_its_memory_along(
    make: Callable[[], ModelRunner],
) -> None:
    core = warm_core(make())
    for number in range(2, 6):
        request = make_request(make_params(num_steps=3))
        core.add(request)
        core.step()
        old = weakref.ref(core.runners["dit"])
        swap(core, other_model(number))
        assert not leave(core, "dit")
        assert core.stats()["dit"].running_slots == 1
        drive(core)
        assert request.status is RequestStatus.FINISHED
        assert leave(core, "dit")
        gc.collect()  # the stand-in of the graphs refers to its runner
        assert old() is None
        assert list(core.runners) == list(core.shares) == ["dit"]
        assert core.runners["dit"].version == number


def test_an_aborted_request_leaves_though_its_step_is_on_the_device() -> None:
    core = warm_core(graph_runner())
    request = make_request(make_params())
    core.add(request)
    core.step()  # is ahead: nothing is collected
    swap(core, other_model(1))
    assert core.abort(request.request_id) is request
    assert leave(core, "dit")
    drive(core)
    assert not request.images


def test_versions_are_found_by_number() -> None:
    core = warm_core(recording_runner(tiny_model(), CONFIG))
    assert key(core, "dit", None) == key(core, "dit", 1) == "dit"
    request = make_request(make_params())
    core.add(request)
    swap(core, other_model(1))
    assert key(core, "dit", None) == key(core, "dit", 2) == "dit"
    late = make_request(make_params(seeds=(9,)))
    late.key = str(key(core, "dit", 1))
    core.add(late)
    drive(core)
    assert is_of(tiny_model(), late)
    leave(core, "dit")
    assert key(core, "dit", 1) is None


def test_cards_name_each_model_once_and_change_with_the_version() -> None:
    core = warm_core(recording_runner(tiny_model(), CONFIG))
    before, cap, times = signature(core), core.shares["dit"].scheduler.max_rows, core.runners["dit"].step_seconds
    core.shares["dit"].slowdown = 1.5
    swap(core, other_model(1))
    assert signature(core) != before
    (card,) = describe(core).cards
    assert (card.name, card.version, card.max_rows, card.step_seconds) == ("dit", 2, cap, times)
    assert card.repeats_itself == core.runners["dit"].repeats_itself
    assert core.shares["dit"].slowdown == 1.5
