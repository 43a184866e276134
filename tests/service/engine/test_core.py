"""EngineCore: the bookkeeping around a step."""

from typing import Any

import pytest

from service.engine.core import EngineConfig, EngineCore, Progress
from service.engine.request import Request, RequestStatus
from service.engine.runner import ModelRunner
from service.errors import QueueFull
from service.observe.scoreboard import ModelStats
from tests.service.engine.tiny import (
    Cramped,
    Turnstile,
    drive,
    make_params,
    make_request,
    recording_runner,
    tiny_config,
    warm_core,
)


class Clock:
    """Moves by 2^-7 s at every call, which floats hold exactly."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 2**-7
        return self.now


def make_core(*models: str, weights: dict[str, float] | None = None, **bounds: Any) -> EngineCore:
    runners: dict[str, ModelRunner] = {model: recording_runner(Turnstile(), tiny_config()) for model in models}
    core = EngineCore(runners, EngineConfig(6, **bounds), weights, Clock())
    for model in models:
        core.warm_up(model)
    return core


def steps_of(model: str, **changes: object) -> Request:
    return make_request(make_params(model, **changes), tiny_config())


def test_an_engine_without_work_does_nothing() -> None:
    core = make_core("a")
    assert not core.has_work
    assert core.step() == Progress([])
    assert core.stats() == {"a": ModelStats(0, 0, 0.0)}


def test_a_request_goes_through_its_states() -> None:
    core = make_core("a")
    request = steps_of("a", num_steps=2, seeds=(1, 2))
    core.add(request)
    assert (request.status, core.stats()["a"].queue_depth) == (RequestStatus.WAITING, 1)
    assert core.step().ended == []
    assert (request.status, core.stats()["a"].queue_depth) == (RequestStatus.RUNNING, 0)
    assert core.stats()["a"].running_slots == 2
    progress = core.step()
    ended, stats = progress.ended, progress.stats
    assert ended == [request]
    assert stats is not None
    assert (stats.model, stats.num_rows) == ("a", 2)
    assert stats.seconds > 0
    assert request.status is RequestStatus.FINISHED
    assert sorted(request.images) == [0, 1]
    assert request.arrived < request.started < request.finished
    assert core.stats()["a"] == ModelStats(0, 0, 0.0)
    assert not core.has_work


def test_the_backlog_is_in_seconds_of_full_steps() -> None:
    core = make_core("a")
    core.runners["a"].step_seconds = {1: 0.1, 6: 0.3}  # 0.05 s a row when full
    core.add(steps_of("a", num_steps=10, guidance_scale=2.0, seeds=(1, 2)))
    assert core.stats()["a"].backlog_seconds == pytest.approx(40 * 0.05)
    core.step()
    assert core.stats()["a"].backlog_seconds == pytest.approx(36 * 0.05 * core.shares["a"].slowdown)


def test_bounds_are_a_models_own() -> None:
    core = make_core("a", "b", max_requests=1)
    core.add(steps_of("a"))
    with pytest.raises(QueueFull) as refusal:
        core.add(steps_of("a"))
    assert (refusal.value.retry_after or 0) > 0
    core.add(steps_of("b"))


def test_retry_after_counts_the_work_of_both_models() -> None:
    core = make_core("a", "b", max_requests=1)
    for model, seconds in (("a", 0.6), ("b", 6.0)):
        core.runners[model].step_seconds = {6: seconds}
        core.add(steps_of(model, num_steps=10))
    with pytest.raises(QueueFull) as refusal:
        core.add(steps_of("a"))
    assert refusal.value.retry_after == pytest.approx(10 * 0.1 + 10 * 1.0)


def test_an_accepted_request_knows_its_idle_latency() -> None:
    core = make_core("a")
    core.runners["a"].step_seconds = {1: 0.25}
    request = steps_of("a", num_steps=10)
    core.add(request)
    assert request.idle_seconds == 2.5


def test_an_idle_latency_follows_the_latest_step_times() -> None:
    core = make_core("a")
    core.runners["a"].step_seconds = {1: 2**-9}  # the clock moves by 2^-7 in a step
    core.add(steps_of("a", num_steps=500))
    for _ in range(500):
        core.step()
    later = steps_of("a", num_steps=10)
    core.add(later)
    slowdown = later.idle_seconds / (10 * 2**-9)
    assert slowdown == core.shares["a"].slowdown
    assert slowdown == pytest.approx(4, rel=0.25)  # step() reads the clock more often


def test_slack_leaves_room_for_the_time_outside_of_the_engine() -> None:
    inside, outside = make_core("a"), make_core("a", outside_seconds=0.5)
    slacks = []
    for core in (inside, outside):
        core.runners["a"].step_seconds = {1: 0.1}
        core.add(request := steps_of("a", num_steps=10))
        slacks.append(request.slack(request.arrived))
    assert slacks[0] - slacks[1] == pytest.approx(0.5)  # of an idle latency of a second


def test_abort_finds_the_model_by_itself() -> None:
    core = make_core("a", "b")
    first, second = steps_of("a"), steps_of("b", num_steps=5)
    core.add(first)
    core.add(second)
    assert core.abort(second.request_id) is second
    assert core.abort(second.request_id) is None
    assert core.abort("nobody") is None
    assert (second.status, second.remaining_rows) == (RequestStatus.ABORTED, 5)
    assert drive(core)[0] == [first]


def test_both_models_come_to_an_end() -> None:
    core = make_core("a", "b")
    requests = [steps_of(model, num_steps=steps) for model in "ab" for steps in (1, 20)]
    ended, steps = drive(core, {0: requests})
    assert set(ended) == set(requests)
    assert {step.model for step in steps} == {"a", "b"}
    assert sum(step.num_rows for step in steps) == 2 * 21
    assert len(steps) == 40  # a step has images of one model only, and a model's images share theirs


def test_a_model_is_charged_its_device_time_divided_by_its_weight() -> None:
    """Both models get steps in turn; the clock gives each step 2^-7 s."""
    core = make_core("a", "b", weights={"b": 4.0})
    for model in "ab":
        core.add(steps_of(model, num_steps=1000))
    used = {"a": 0.0, "b": 0.0}
    for _ in range(900):
        stats = core.step().stats
        assert stats is not None
        used[stats.model] += stats.seconds
    assert core.shares["a"].virtual_time == used["a"]
    assert core.shares["b"].virtual_time == used["b"] / 4


def test_the_runner_chooses_the_cap_when_nobody_sets_it() -> None:
    runner = recording_runner(Turnstile(), tiny_config(), num_slots=5)
    core = EngineCore({"dit": runner}, EngineConfig())
    core.warm_up("dit")
    assert sorted(runner.step_seconds) == [1, 2, 3, 4, 5]
    assert core.shares["dit"].scheduler.max_rows == runner.choose_cap() == 5


def test_one_row_cap_serves_guided_images_too() -> None:
    core = warm_core(recording_runner(Turnstile(), tiny_config()), max_rows=2)
    requests = [make_request(make_params(guidance_scale=2.0, seeds=(1, 2, 3)))]
    ended, steps = drive(core, {0: requests})
    assert ended == requests
    assert [step.num_rows for step in steps] == [2] * 12


def test_a_step_that_fails_after_its_forward_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latents have advanced by then, and a second try would advance them twice. So the engine ends."""
    core = make_core("a")
    core.add(steps_of("a", num_steps=1))
    monkeypatch.setattr("service.engine.runner.sampler_step", lambda *state: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        core.step()


def test_out_of_memory_lowers_the_row_cap_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = Cramped(6)
    core = warm_core(recording_runner(model, tiny_config()), max_rows=6)
    model.room = 3
    requests = [steps_of("dit", num_steps=3) for _ in range(6)]
    ended, steps = drive(core, {0: requests})
    assert sorted(ended, key=id) == sorted(requests, key=id)
    assert {request.status for request in requests} == {RequestStatus.FINISHED}
    assert core.shares["dit"].scheduler.max_rows == 3
    assert [step.num_rows for step in steps][1:] == [3] * 4  # the first step was run image by image
    assert "no memory for 6 rows: at most 3 from now on" in caplog.text


def test_a_padded_step_without_memory_is_run_again_with_less_padding() -> None:
    model = Cramped(8)
    core = warm_core(recording_runner(model, tiny_config()), max_rows=8)
    runner, scheduler = core.runners["dit"], core.shares["dit"].scheduler
    assert (runner.fixed_rows, runner.repeats_itself) == (8, True)
    model.room = 3
    request = steps_of("dit", deterministic=True)
    ended, steps = drive(core, {0: [request]})
    assert (ended, request.status) == ([request], RequestStatus.FINISHED)
    assert (scheduler.max_rows, steps[-1].num_rows + steps[-1].num_padding_rows) == (2, 2)  # 8 and 4 did not fit
    assert (runner.fixed_rows, runner.repeats_itself) == (2, False)  # nobody has checked that 2 rows repeat


def test_the_row_cap_is_half_of_the_rows_with_their_padding() -> None:
    model = Cramped(8)
    core = warm_core(recording_runner(model, tiny_config()), max_rows=8)
    model.room = 4
    drive(core, {0: [steps_of("dit", deterministic=True)]})
    assert core.shares["dit"].scheduler.max_rows == 4


def test_the_row_cap_always_holds_a_guided_image() -> None:
    model = Cramped(6)
    core = warm_core(recording_runner(model, tiny_config()), max_rows=6)
    model.room = 1
    request = steps_of("dit", guidance_scale=2.0)
    ended, _ = drive(core, {0: [request]})
    assert ended == [request]
    assert request.status is RequestStatus.FAILED
    assert core.shares["dit"].scheduler.max_rows == 2
