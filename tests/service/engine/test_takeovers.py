"""A faster runner takes over while a model serves; each request is answered once, by the runner it began with."""

import asyncio
import logging
import threading
from typing import Any

import pytest
from torch import nn

from service.engine.cards import describe
from service.engine.core import EngineCore
from service.engine.runner import ModelRunner
from service.errors import DeadlinePassed, InvalidRequest, Unavailable
from service.wire.async_engine import AsyncEngine
from service.wire.messages import RequestOutput
from tests.service.engine.desk import Desk, make_core, rigged, until
from tests.service.engine.test_repetition import Sociable
from tests.service.engine.test_swaps import LONG, NEW, OLD, Painter, Shelf, refusal, run, shade
from tests.service.engine.tiny import make_params, tiny_config
from tests.waiting import PATIENCE, wait_until


class Workshop:
    """Makes a runner of another backend, once it is opened, and as often as it is asked to."""

    def __init__(self, network: nn.Module | Exception):
        self.network = network
        self.opened = threading.Event()
        self.asked, self.given_up = 0, 0

    def make(self, runner: ModelRunner, stop: threading.Event) -> ModelRunner:
        self.asked += 1
        wait_until(lambda: self.opened.is_set() or stop.is_set())
        if stop.is_set():
            self.given_up += 1
            raise InterruptedError("told to stop")
        if isinstance(self.network, Exception):
            raise self.network
        made = runner.successor(self.network, tiny_config())
        made.backend = "other"
        return made


def core_with(workshop: Workshop) -> EngineCore:
    core = make_core(Painter(0.5))
    core.runners["dit"].make_faster = workshop.make
    return core


def backend(engine: AsyncEngine) -> str:
    return engine.cards["dit"].backend


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in ("takeover", "swap")]


def test_a_running_request_keeps_its_backend_and_a_later_one_gets_the_new() -> None:
    workshop = Workshop(Painter(-0.5))

    async def work(engine: AsyncEngine) -> None:
        before = asyncio.create_task(shade(engine, **LONG))
        assert await shade(engine) == OLD
        first = engine.cards["dit"]
        workshop.opened.set()
        await until(lambda: backend(engine) == "other")
        assert await shade(engine) == NEW
        assert await before == OLD
        card = engine.cards["dit"]
        assert (card.version, card.sha256, card.parameters) == (1, first.sha256, first.parameters)
        assert card.build != first.build  # so no link names the bits of both

    with rigged(core_with(workshop)) as rig:
        run(rig, work)
        wait_until(lambda: list(rig.core.runners) == ["dit"])
        assert (workshop.asked, threads()) == (1, [])


def test_under_load_every_request_is_answered_once() -> None:
    workshop = Workshop(Painter(-0.5))
    with rigged(core_with(workshop)) as rig:
        desks = [Desk(rig) for _ in range(2)]
        sent: list[tuple[Desk, str]] = []
        for number in range(150):
            desk = desks[number % 2]
            sent.append(
                (desk, desk.send(num_steps=1 + number % 20, seeds=(number,), deterministic=number % 3 == 0))
            )
            if number == 40:
                workshop.opened.set()
                wait_until(lambda: rig.core.runners["dit"].backend == "other")
        shades = {pixels_of(desk.answer(name)) for desk, name in sent}
        wait_until(lambda: list(rig.core.runners) == ["dit"])
        assert all(len(answers) == 1 for desk in desks for answers in desk.answers.values())
        rig.end()
        for desk in desks:
            desk.close()
    assert shades == {(OLD,), (NEW,)}


def pixels_of(answer: Any) -> tuple[int, ...]:
    """The levels in a picture."""
    assert isinstance(answer, RequestOutput), answer
    return tuple(sorted(set(answer.pixels)))


def test_deterministic_requests_wait_for_the_backend_that_stays() -> None:
    workshop = Workshop(Painter(-0.5))

    async def work(engine: AsyncEngine) -> None:
        assert engine.cards["dit"].repeats_itself is None
        waiting = asyncio.create_task(shade(engine, deterministic=True))
        left = asyncio.create_task(shade(engine, deterministic=True))
        late = refusal(anext(engine.generate(make_params(deterministic=True), deadline_seconds=0.01)))
        assert isinstance(await late, DeadlinePassed)
        assert await shade(engine) == OLD
        left.cancel()
        assert not waiting.done()
        workshop.opened.set()
        assert await waiting == NEW
        assert engine.cards["dit"].repeats_itself is True

    with rigged(core_with(workshop)) as rig:
        run(rig, work)


def test_a_takeover_that_fails_keeps_the_backend_and_logs_why_once(caplog: pytest.LogCaptureFixture) -> None:
    workshop = Workshop(RuntimeError("no such\noperation"))

    async def work(engine: AsyncEngine) -> None:
        waiting = asyncio.create_task(shade(engine, deterministic=True))
        workshop.opened.set()
        assert await waiting == OLD
        assert backend(engine) == "torch"

    with caplog.at_level(logging.INFO), rigged(core_with(workshop)) as rig:
        run(rig, work)
        assert workshop.asked == 1
    assert caplog.text.count("model dit stays on torch: RuntimeError: no such operation") == 1


def test_a_backend_that_does_not_repeat_itself_refuses_the_mode() -> None:
    workshop = Workshop(Sociable())

    async def work(engine: AsyncEngine) -> None:
        waiting = asyncio.create_task(refusal(shade(engine, deterministic=True)))
        workshop.opened.set()
        error = await waiting
        assert isinstance(error, InvalidRequest)
        assert error.detail.startswith("deterministic: not possible on this machine")
        assert engine.cards["dit"].repeats_itself is False

    with rigged(core_with(workshop)) as rig:
        run(rig, work)


def test_a_swap_goes_first_and_its_weights_stay() -> None:
    workshop = Workshop(Painter(-0.5))

    async def work(engine: AsyncEngine) -> None:
        await until(lambda: workshop.asked == 1)
        assert (await engine.swap("dit", "new")).version == 2
        assert workshop.given_up == 1
        workshop.opened.set()
        assert await shade(engine, deterministic=True) == 128
        assert backend(engine) == "torch"

    with rigged(core_with(workshop), Shelf(new=Painter(0.0)).load) as rig:
        run(rig, work)
        assert (workshop.asked, threads()) == (1, [])


def test_a_request_that_waits_for_a_backend_outlasts_a_swap() -> None:
    """It keeps its weights, though the new ones have no final backend either."""
    workshop = Workshop(Painter(-0.5))

    def load(model: str, folder: str, runner: ModelRunner) -> ModelRunner:
        made = runner.successor(Painter(0.0), tiny_config())
        made.make_faster = workshop.make
        return made

    async def work(engine: AsyncEngine) -> None:
        await until(lambda: workshop.asked == 1)
        waiting = asyncio.create_task(shade(engine, deterministic=True))
        assert (await engine.swap("dit", "new")).version == 2
        assert engine.cards["dit"].repeats_itself is None
        workshop.opened.set()
        assert await waiting == OLD
        assert await shade(engine, deterministic=True) == NEW

    with rigged(core_with(workshop), load) as rig:
        run(rig, work)


def test_a_swap_that_fails_lets_the_making_begin_anew() -> None:
    workshop = Workshop(Painter(-0.5))

    async def work(engine: AsyncEngine) -> None:
        await until(lambda: workshop.asked == 1)
        await refusal(engine.swap("dit", "broken"))
        workshop.opened.set()
        assert await shade(engine, deterministic=True) == NEW
        assert (workshop.asked, workshop.given_up) == (2, 1)

    with rigged(core_with(workshop), Shelf(broken=KeyError("x")).load) as rig:
        run(rig, work)


def test_weights_that_come_with_another_backend_are_measured_anew() -> None:
    def load(model: str, folder: str, runner: ModelRunner) -> ModelRunner:
        made = runner.successor(Sociable(), tiny_config())
        made.backend = folder
        return made

    async def work(engine: AsyncEngine) -> None:
        assert (await engine.swap("dit", "torch")).repeats_itself is True  # not measured: it is the same network
        assert (await engine.swap("dit", "other")).repeats_itself is False

    with rigged(make_core(Painter(0.5)), load) as rig:
        run(rig, work)


@pytest.mark.parametrize("drain_seconds", [0.0, 60.0])
def test_a_stop_ends_the_making_and_refuses_requests_that_wait_for_it(drain_seconds: float) -> None:
    workshop = Workshop(Painter(-0.5))

    async def work(engine: AsyncEngine) -> None:
        before = asyncio.create_task(shade(engine, **LONG))
        waiting = asyncio.create_task(refusal(shade(engine, deterministic=True)))
        await until(lambda: workshop.asked == 1 and rig.stats().running_slots > 0)
        rig.request_stop(drain_seconds)
        assert isinstance(await waiting, Unavailable)
        if drain_seconds:
            assert await before == OLD
        else:
            assert isinstance(await refusal(before), Unavailable)

    with rigged(core_with(workshop)) as rig:
        run(rig, work)
        rig.stop(0.0)
        wait_until(lambda: not threads(), PATIENCE)
        assert not rig.loop.died
        assert workshop.given_up == 1


def test_the_card_tells_the_backend() -> None:
    (card,) = describe(make_core(Painter(0.5))).cards
    assert card.backend == "torch"
