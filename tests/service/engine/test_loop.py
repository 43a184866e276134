"""The engine's loop, over its socket: one answer for every request, whatever happens."""

import random
import threading
import time

import pytest

from service.engine import loop as loop_module
from service.engine.core import EngineCore
from service.engine.request import Request
from service.errors import GenerationFailed, QueueFull, Unavailable
from service.observe.scoreboard import ModelStats
from service.wire.async_engine import pixels
from service.wire.messages import RequestOutput
from tests.service.engine.desk import Counting, Desk, Rig, make_core, running
from tests.service.engine.tiny import Turnstile
from tests.waiting import PATIENCE, wait_until


def test_answers_are_images_and_times() -> None:
    before = time.monotonic()
    with running(make_core(Turnstile())) as desk:
        answer = desk.answer(desk.send(seeds=(1, 2, 3)))
    assert isinstance(answer, RequestOutput)
    assert [image.shape for image in pixels(answer)] == [(8, 8, 1)] * 3
    assert before <= answer.arrived <= answer.started < answer.finished <= time.monotonic()


def test_a_large_answer_leaves_as_fast_as_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long an idle engine sleeps, it wakes when its client has read what the socket holds."""
    monkeypatch.setattr(loop_module, "IDLE_SECONDS", 10 * PATIENCE)
    with running(make_core(Turnstile())) as desk:
        answer = desk.answer(
            desk.send(num_steps=1, seeds=tuple(range(10_000)))
        )  # 640 KB, three times what it holds
        assert isinstance(answer, RequestOutput)
        assert len(answer.pixels) == 640_000


def test_a_request_that_comes_while_the_device_is_busy_joins_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Turnstile()
    core = make_core(model)
    monkeypatch.setattr(
        core, "spare_seconds", lambda: 0.01 if len(core.shares["dit"].scheduler.requests) == 1 else 0
    )
    with running(core) as desk:
        model.rows.clear()
        first = desk.send()
        wait_until(lambda: len(core.shares["dit"].scheduler.requests) == 1)
        second = desk.send()
        assert isinstance(desk.answer(first), RequestOutput)
        assert isinstance(desk.answer(second), RequestOutput)
    assert model.rows[0] == 2


def test_images_are_in_the_order_of_their_seeds() -> None:
    """Five one-row images of one request, of which the cap of four lets the last start late."""
    with running(make_core(Turnstile())) as desk:
        together = desk.answer(desk.send(seeds=(1, 2, 3, 4, 5)))
        alone = [desk.answer(desk.send(seeds=(seed,))) for seed in (1, 2, 3, 4, 5)]
    assert isinstance(together, RequestOutput)
    for image, answer in zip(pixels(together), alone, strict=True):
        assert isinstance(answer, RequestOutput)
        assert (image == pixels(answer)[0]).all()


@pytest.mark.parametrize("seed", range(3))
def test_every_request_has_one_end_under_random_aborts(seed: int) -> None:
    """Four clients send a hundred requests each and take back a third of them at any moment."""
    core = make_core(Turnstile(), Counting, max_requests=40)
    assert isinstance(core, Counting)
    with running(core) as desk:

        def client(number: int) -> None:
            rng = random.Random(1000 * seed + number)
            for _ in range(100):
                name = desk.send(
                    num_steps=rng.randint(1, 8),
                    guidance_scale=rng.choice([1.0, 2.0]),
                    seeds=tuple(range(rng.randint(1, 3))),
                )
                if rng.random() < 0.35:
                    time.sleep(rng.choice([0.0, 0.0, 0.002]))
                    desk.abort(rng.choice(list(desk.answers)) if rng.random() < 0.3 else name)
                    desk.abort(name)

        clients = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(4)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        desk.rig.stop(PATIENCE)
        desk.close()
        ends = {
            name: core.aborted.count(name) or len(answers)  # an aborted one hears only that the engine has ended
            for name, answers in desk.answers.items()
        }
    assert len(ends) == 400
    assert set(ends.values()) == {1}
    kinds = {type(answer) for answers in desk.answers.values() for answer in answers}
    assert RequestOutput in kinds
    assert kinds <= {RequestOutput, QueueFull, Unavailable}
    assert core.aborted
    scheduler = core.shares["dit"].scheduler
    assert len(scheduler.free_slots) == scheduler.num_slots


def test_a_flood_of_refusals_does_not_hold_up_the_steps() -> None:
    class Slow(EngineCore):
        def add(self, request: Request) -> None:
            if request.params.num_steps == 1:
                time.sleep(0.001)  # about what a refusal costs
                raise QueueFull("full", retry_after=1.0)
            super().add(request)

    with running(make_core(Turnstile(), Slow)) as desk:
        served = desk.send(num_steps=20, guidance_scale=1.0)
        flood = [desk.send(num_steps=1, guidance_scale=1.0) for _ in range(1000)]
        wait_until(lambda: served in desk.order)
        assert desk.order.index(served) < 500  # not behind all of them: each step waits for a few
        assert isinstance(desk.answer(served), RequestOutput)
        wait_until(lambda: all(desk.answers[name] for name in flood))


def test_a_failing_request_is_answered_and_the_engine_lives() -> None:
    class Moody(Turnstile):
        def forward(self, x, t, y):
            if (y == 7).any():
                raise ArithmeticError("not a seven")
            return super().forward(x, t, y)

    with running(make_core(Moody())) as desk:
        bad, good = desk.send(class_label=7), desk.send(class_label=1)
        failure = desk.answer(bad)
        assert isinstance(failure, GenerationFailed)
        assert str(failure) == "the model raised ArithmeticError"
        assert isinstance(desk.answer(good), RequestOutput)
        assert not desk.rig.dead


def test_a_full_queue_refuses_the_request() -> None:
    model = Turnstile()
    with running(make_core(model, max_requests=1)) as desk:
        model.close()
        desk.send(seeds=(1, 2, 3, 4))  # takes all slots
        wait_until(lambda: len(model.rows) == 1)
        desk.send()
        refused = desk.send()
        model.let_pass(1)
        answer = desk.answer(refused)
    assert isinstance(answer, QueueFull)
    assert (answer.retry_after or 0) > 0


def test_stop_drains_what_was_accepted_and_refuses_the_rest() -> None:
    model = Turnstile()
    with running(make_core(model)) as desk:
        model.close()
        accepted = [desk.send(num_steps=1000) for _ in range(6)]  # four run, two wait
        # between two steps the engine reads for 2 ms, which may not be enough for all
        while len(desk.rig.core.shares["dit"].scheduler.requests) < len(accepted):
            model.let_pass(1)
        desk.rig.request_stop(PATIENCE)
        while desk.rig.ready:  # the command is handled between two steps
            model.let_pass(1)
        late = desk.send()
        model.let_pass(1)
        refusal = desk.answer(late)
        assert isinstance(refusal, Unavailable)
        assert str(refusal) == "the service is shutting down: try again later"
        assert not any(desk.answers[name] for name in accepted)
        model.open()
        wait_until(lambda: desk.rig.dead)
        assert all(isinstance(desk.answer(name), RequestOutput) for name in accepted)
        assert isinstance(desk.answer(desk.send()), Unavailable)


def test_a_stop_without_a_drain_refuses_what_is_open() -> None:
    model = Turnstile()
    with running(make_core(model)) as desk:
        model.close()
        names = [desk.send(num_steps=500) for _ in range(6)]
        wait_until(lambda: len(model.rows) == 1)
        desk.rig.request_stop(0.0)
        model.open()
        desk.rig.stop(0.0)
        answers = [desk.answer(name) for name in names]
        assert [str(answer) for answer in answers] == ["the service is shutting down: try again later"] * 6
        assert all(isinstance(answer, Unavailable) for answer in answers)
        assert len(model.rows) < 500


def test_a_later_stop_can_only_shorten_the_time() -> None:
    model = Turnstile()
    with running(make_core(model)) as desk:
        model.close()
        name = desk.send(num_steps=500)
        wait_until(lambda: len(model.rows) == 1)
        for drain_seconds in (PATIENCE, 0.0, PATIENCE):
            desk.rig.request_stop(drain_seconds)
        model.open()
        assert isinstance(desk.answer(name), Unavailable)
        assert len(model.rows) < 10


def test_a_request_during_warm_up_is_refused_and_does_no_harm() -> None:
    class Early(Turnstile):
        def forward(self, x, t, y):
            if not self.rows:
                early.append(desk.send())
            return super().forward(x, t, y)

    early: list[str] = []
    rig = Rig(make_core(Early()))
    desk = Desk(rig)
    rig.thread.start()
    wait_until(lambda: rig.ready or rig.dead)
    assert str(desk.answer(early[0])) == "the service is not ready yet: try again later"
    assert isinstance(desk.answer(desk.send()), RequestOutput)
    rig.stop(0.0)
    rig.close()
    desk.close()


def test_stop_ends_a_warm_up() -> None:
    class Slow(Turnstile):
        def forward(self, x, t, y):
            rig.request_stop(PATIENCE)
            return super().forward(x, t, y)

    model = Slow()
    rig = Rig(make_core(model))
    rig.thread.start()
    rig.thread.join(PATIENCE)
    rig.close()
    assert rig.dead
    assert set(model.rows) == {4}  # it did not go on to three rows


def test_an_idle_engine_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "IDLE_SECONDS", 0.01)
    with running(make_core(Turnstile())) as desk:
        for _ in range(3):
            seen = desk.rig.board.heartbeat
            wait_until(lambda seen=seen: desk.rig.board.heartbeat > seen)


def test_gauges_follow_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "GAUGE_SECONDS", 0.0)
    model = Turnstile()
    with running(make_core(model)) as desk:
        model.close()
        names = [desk.send(num_steps=3, seeds=(1, 2, 3, 4))]
        wait_until(lambda: len(model.rows) == 1)
        names += [desk.send(num_steps=2) for _ in range(3)]
        model.let_pass(1)
        wait_until(lambda: (desk.rig.stats().running_slots, desk.rig.stats().queue_depth) == (4, 3))
        stats = desk.rig.stats()
        assert stats.backlog_seconds > 0
        model.open()
        for name in names:
            desk.answer(name)
        wait_until(lambda: desk.rig.stats() == ModelStats(0, 0, 0.0))


def test_a_short_request_joins_a_long_one_within_a_step_and_leaves_first() -> None:
    model = Turnstile()
    with running(make_core(model)) as desk:
        steps = desk.rig.recorder.steps
        model.close()
        long = desk.send(num_steps=200)
        wait_until(lambda: len(model.rows) == 1)
        model.let_pass(20)  # the 21st step is under way
        short = desk.send(num_steps=3)
        model.let_pass(4)
        assert isinstance(desk.answer(short), RequestOutput)
        assert desk.answers[long] == []
        model.open()
        desk.answer(long)
        wait_until(lambda: len(steps) == 200)
    assert desk.order == [short, long]
    assert [step.num_rows for step in steps] == [1] * 21 + [2] * 3 + [1] * 176
