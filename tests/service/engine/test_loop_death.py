"""An engine that dies answers everybody."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from service.engine.core import EngineCore, Progress
from service.errors import Unavailable
from tests.service.engine.desk import make_core, running
from tests.service.engine.tiny import Turnstile
from tests.waiting import PATIENCE, wait_until


class MortalCore(EngineCore):
    """Dies in a step of the test's choice."""

    steps_left = 10**9

    def step(self) -> Progress:
        if self.has_work:
            self.steps_left -= 1
        if self.steps_left < 0:
            raise SystemError("the device fell off the bus")
        return super().step()


def test_death_answers_every_open_and_every_later_request(caplog: pytest.LogCaptureFixture) -> None:
    model = Turnstile()
    core = make_core(model, MortalCore)
    assert isinstance(core, MortalCore)
    core.steps_left = 5
    with running(core) as desk:
        model.close()  # the engine hears of all of them before it dies
        running_or_waiting = [desk.send(num_steps=50) for _ in range(10)]
        model.open()
        for name in running_or_waiting:
            answer = desk.answer(name)
            assert isinstance(answer, Unavailable)
            assert "SystemError" in str(answer)
        wait_until(lambda: desk.rig.dead)
        assert not desk.rig.ready
        assert isinstance(desk.answer(desk.send()), Unavailable)
        desk.abort(running_or_waiting[0])
    assert all(len(answers) == 1 for answers in desk.answers.values())
    assert "the device fell off the bus" in caplog.text


@pytest.mark.parametrize("seed", range(5))
def test_requests_that_arrive_while_the_engine_dies_are_answered(seed: int) -> None:
    core = make_core(Turnstile(), MortalCore)
    assert isinstance(core, MortalCore)
    core.steps_left = 3 + 10 * seed
    with running(core) as desk:
        senders = [
            threading.Thread(target=lambda: [desk.send(num_steps=2) for _ in range(100)], daemon=True)
            for _ in range(3)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(PATIENCE)
        wait_until(lambda: all(desk.answers.values()))
    assert [len(answers) for answers in desk.answers.values()] == [1] * 300
    assert desk.rig.dead


class SlowlyDyingCore(EngineCore):
    """Dies in its first step with work, when it is told to."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.dying, self.last_words = threading.Event(), threading.Event()

    def step(self) -> Progress:
        if not self.has_work:
            return Progress([])
        self.dying.set()
        self.last_words.wait(PATIENCE)
        raise SystemError


def test_requests_that_the_dead_engine_never_looked_at_are_answered() -> None:
    core = make_core(Turnstile(), SlowlyDyingCore)
    assert isinstance(core, SlowlyDyingCore)
    with running(core) as desk:
        seen = desk.send()
        assert core.dying.wait(PATIENCE)
        unseen = [desk.send() for _ in range(3)]
        core.last_words.set()
        assert [type(desk.answer(name)) for name in [seen, *unseen]] == [Unavailable] * 4


def test_a_request_that_kills_the_engine_is_answered() -> None:
    with running(make_core(Turnstile())) as desk:
        assert isinstance(desk.answer(desk.send(model="nobody")), Unavailable)
        wait_until(lambda: desk.rig.dead)


class ColdCore(EngineCore):
    def warm_up(self, model: str, on_progress: Callable[[], None] = lambda: None) -> int:
        raise MemoryError("no room for the pool")


def test_death_in_warm_up_answers_too() -> None:
    with running(make_core(Turnstile(), ColdCore)) as desk:
        assert isinstance(desk.answer(desk.send()), Unavailable)
        wait_until(lambda: desk.rig.dead)
        assert not desk.rig.ready


def test_a_lost_device_ends_the_engine() -> None:
    """Nothing can succeed on it any more, so failing request by request would only hide it from liveness."""

    class Lost(Turnstile):
        def forward(self, x, t, y):
            if self.closed:
                raise torch.AcceleratorError("an illegal memory access was encountered")
            return super().forward(x, t, y)

    model = Lost()
    with running(make_core(model)) as desk:
        model.closed = True
        answers = [desk.answer(name) for name in [desk.send(), desk.send()]]
        assert [type(answer) for answer in answers] == [Unavailable] * 2
        wait_until(lambda: desk.rig.dead)
