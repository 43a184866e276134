"""Deadlines at admission, in the queue and between steps.

The clock moves only when the test says so; every step costs a second.
"""

import pytest
from torch import Tensor, nn

from service.engine.core import EngineConfig, EngineCore
from service.engine.request import Request, RequestStatus
from service.errors import DeadlineUnreachable
from tests.service.engine.tiny import drive, make_params, make_request, recording_runner, tiny_config


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Ticking(nn.Module):
    """A network that takes a second a step, whatever its rows."""

    num_classes = 10

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock = clock

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.clock.now += 1.0
        return x / 2


def make_core(max_rows: int = 2) -> tuple[EngineCore, Clock]:
    clock = Clock()
    runner = recording_runner(Ticking(clock), tiny_config())
    core = EngineCore({"dit": runner}, EngineConfig(max_rows), clock=clock)
    core.warm_up("dit")
    runner.step_seconds = dict.fromkeys(range(1, max_rows + 1), 1.0)
    clock.now = 0.0
    return core, clock


def within(seconds: float | None, steps: int = 4, images: int = 1) -> Request:
    request = make_request(make_params(num_steps=steps, seeds=tuple(range(images))))
    request.deadline_seconds = seconds
    return request


def test_a_deadline_that_can_be_met_is_met() -> None:
    core, _ = make_core()
    request = within(4.0)
    core.add(request)
    assert drive(core)[0] == [request]
    assert request.status is RequestStatus.FINISHED


@pytest.mark.parametrize("seconds", [3.9, 0.001])
def test_a_deadline_below_the_idle_latency_is_refused_at_once(seconds: float) -> None:
    core, _ = make_core()
    with pytest.raises(DeadlineUnreachable, match="about 4000 ms are needed") as refusal:
        core.add(within(seconds))
    assert refusal.value.retry_after is None  # an idle engine would refuse it, too
    assert not core.has_work
    core.add(within(None))
    with pytest.raises(DeadlineUnreachable) as refusal:
        core.add(within(seconds))
    assert refusal.value.retry_after is None


def test_a_deadline_allows_for_what_runs_and_waits_before_it() -> None:
    """Two images run for three more seconds, then two for four, and then it takes four itself."""
    core, _ = make_core()
    core.add(within(None, images=2))
    core.step()
    core.add(within(None, images=2))
    with pytest.raises(DeadlineUnreachable, match="about 11000 ms") as refusal:
        core.add(within(10.9))
    assert (refusal.value.retry_after or 0) > 0
    core.add(within(11.1))
    (last,) = [request for request in drive(core)[0] if request.deadline_seconds]
    assert last.status is RequestStatus.FINISHED
    assert last.finished - last.arrived == pytest.approx(7.0)  # it has the least slack, and overtakes


def test_a_request_leaves_the_queue_when_its_deadline_has_passed() -> None:
    core, clock = make_core()
    first, late = within(None, steps=10, images=2), within(11.5, steps=2)
    core.add(first)
    core.step()
    core.add(late)
    clock.now += 12.0
    ended = core.step().ended
    assert ended == [late]
    assert (late.status, late.remaining_rows) == (RequestStatus.EXPIRED, 2)
    assert drive(core)[0] == [first]


def test_a_running_request_stops_at_its_deadline_and_frees_its_slot() -> None:
    core, clock = make_core()
    late, stays = within(5.0, steps=5), within(None, steps=6)
    core.add(late)
    core.add(stays)
    core.step()
    clock.now += 4.5  # the device was busy with something else
    progress = core.step()
    assert progress.ended == [late]
    assert late.tasks[0].slot is None
    assert late.remaining_rows == 4
    assert progress.stats is not None
    assert progress.stats.num_rows == 1
    assert drive(core)[0] == [stays]


def test_a_request_without_a_deadline_never_expires() -> None:
    core, clock = make_core()
    request = within(None)
    core.add(request)
    clock.now += 1e9
    assert drive(core)[0] == [request]
    assert request.status is RequestStatus.FINISHED
