"""The demand for the device, and which requests are refused, on a clock that the test moves.

Every step costs a second, whatever its rows; four rows fit.
"""

from dataclasses import replace

import pytest

from service.engine import admission
from service.engine.admission import (
    CALM_SECONDS,
    FEW_IMAGES,
    FIRST_FULL,
    LEAST_FULL,
    MOST_FULL,
    PLAY_SECONDS,
    STANDING_SECONDS,
    OverloadGuard,
    demand,
    expected_seconds,
    learn,
)
from service.engine.policy import DeviceShare
from service.engine.request import TARGET_FACTOR, Request, RequestStatus
from service.engine.scheduler import Scheduler
from tests.service.engine.rows import UNBOUNDED, make_request, run_step

MODEL = "model"  # of every request that make_request makes


def utilisation(shares: dict[str, DeviceShare], now: float) -> float:
    return sum(demand(share, now).utilisation(share) for share in shares.values())


def make_share(*requests: Request, weight: float = 1.0, max_rows: int = 4) -> DeviceShare:
    scheduler = Scheduler(max_rows, UNBOUNDED, UNBOUNDED, seconds_per_row=lambda: 1 / max_rows)
    share = DeviceShare(scheduler, weight, measured_seconds=lambda rows: 1.0 if rows else 0.0)
    for request in requests:
        scheduler.add(request, 0.0)
    return share


def steps(count: int, n: int = 1, deadline: float | None = None) -> Request:
    request = make_request(*[1] * count, n=n)
    request.idle_seconds, request.deadline_seconds = float(count), deadline
    return request


def test_one_request_asks_for_a_third_of_the_device() -> None:
    """It may take three times what it takes alone."""
    share = make_share(steps(10))
    assert utilisation({MODEL: share}, now=0.0) == pytest.approx(1 / TARGET_FACTOR)
    assert utilisation({MODEL: make_share()}, now=0.0) == 0.0


def test_time_that_passes_and_deadlines_raise_the_pace() -> None:
    share = make_share(steps(10))
    assert utilisation({MODEL: share}, now=10.0) == pytest.approx(10 / 20)
    assert utilisation({MODEL: make_share(steps(10, deadline=12.5))}, now=0.0) == pytest.approx(0.8)


def test_rows_beyond_a_full_step_need_further_steps() -> None:
    assert utilisation({MODEL: make_share(steps(10, n=4))}, 0.0) == pytest.approx(1 / 3)
    assert utilisation({MODEL: make_share(steps(10, n=4), steps(10, n=4))}, 0.0) == pytest.approx(2 / 3)


def test_what_is_late_asks_for_the_whole_device() -> None:
    """If it asked for nothing, a load that makes every request late would look like no load."""
    assert utilisation({MODEL: make_share(steps(10))}, now=20.5) == pytest.approx(1.0)
    assert utilisation({MODEL: make_share(steps(10))}, now=1e6) == pytest.approx(1.0)


def test_models_add_up() -> None:
    shares = {MODEL: make_share(steps(10)), "other": make_share(steps(4, deadline=8.0))}
    assert utilisation(shares, 0.0) == pytest.approx(1 / 3 + 1 / 2)


def full_device() -> dict[str, DeviceShare]:
    shares = {MODEL: make_share(*[steps(10, n=4) for _ in range(5)])}
    assert utilisation(shares, 0.0) > MOST_FULL
    return shares


def test_a_burst_is_queued_and_a_standing_overload_refused() -> None:
    guard, shares = OverloadGuard(), full_device()
    assert not guard.refuses(steps(10), shares, 0.0)
    assert not guard.refuses(steps(10), shares, STANDING_SECONDS - 0.01)
    assert guard.refuses(steps(10), shares, STANDING_SECONDS)
    assert guard.refuses(steps(10), shares, STANDING_SECONDS + 0.1)


def test_a_moment_below_the_bound_ends_the_burst_but_not_the_overload() -> None:
    guard, shares, calm = OverloadGuard(), full_device(), {MODEL: make_share()}
    assert not guard.refuses(steps(10), shares, 0.0)
    assert not guard.refuses(steps(10), calm, 0.2)
    assert not guard.refuses(steps(10), shares, 0.3)  # a new burst
    assert guard.refuses(steps(10), shares, 0.3 + STANDING_SECONDS)
    assert not guard.refuses(steps(10), calm, 0.6)  # it fits, so it is welcome ...
    assert guard.refuses(steps(10), shares, 0.7)  # ... and the next one is not


def test_a_model_within_its_part_of_the_device_is_not_refused_for_the_other() -> None:
    guard = OverloadGuard()
    shares = full_device() | {"flooded": full_device()[MODEL]}
    shares[MODEL] = make_share()
    for now in (0.0, STANDING_SECONDS, 2 * STANDING_SECONDS):
        assert utilisation(shares, now) > MOST_FULL
        assert not guard.refuses(steps(10), shares, now)
    shares[MODEL].weight = 0.4  # now a third of the device is more than its part
    assert guard.refuses(steps(10), shares, 1.0)


def test_a_model_that_is_never_refused_does_not_end_the_overload_of_another() -> None:
    """The quiet model asks in between, and is not refused."""
    guard = OverloadGuard()
    shares = {MODEL: full_device()[MODEL], "quiet": make_share()}
    quiet = steps(10)
    quiet.params = replace(quiet.params, model="quiet")
    for part in (0.0, 0.3, 0.6, 0.9):
        assert not guard.refuses(quiet, shares, part * STANDING_SECONDS)
    assert guard.refuses(steps(10), shares, STANDING_SECONDS)
    assert not guard.refuses(quiet, shares, STANDING_SECONDS)


def test_the_overload_is_over_after_a_second_without_refusals() -> None:
    guard, shares = OverloadGuard(), full_device()
    guard.refuses(steps(10), shares, 0.0)
    assert guard.refuses(steps(10), shares, STANDING_SECONDS)
    assert not guard.refuses(steps(10), shares, STANDING_SECONDS + CALM_SECONDS + 0.1)


def ended(seconds: float) -> Request:
    """Of an idle latency of ten seconds."""
    request = steps(10)
    request.arrived, request.finished = 100.0, 100.0 + seconds
    return request


def test_late_answers_lower_the_bound_while_requests_are_refused() -> None:
    guard, late, in_time = OverloadGuard(), ended(30.1), ended(29.9)
    guard.learn(late)
    assert guard.full == FIRST_FULL  # nobody is refused, so the bound is not to blame
    guard.refuses(steps(10), full_device(), 0.0)
    assert guard.refuses(steps(10), full_device(), STANDING_SECONDS)
    guard.learn(late)
    lower = guard.full
    assert LEAST_FULL < lower < FIRST_FULL
    guard.learn(in_time)
    assert lower < guard.full < FIRST_FULL
    failed, expired = ended(40.0), ended(30.0)
    failed.status, expired.status = RequestStatus.FAILED, RequestStatus.EXPIRED
    before = guard.full
    guard.learn(failed)
    assert guard.full == before
    guard.learn(expired)
    assert guard.full < before
    for request, bound in ((late, LEAST_FULL), (in_time, MOST_FULL)):
        for _ in range(2000):
            guard.learn(request)
        assert guard.full == bound
    # between the bounds it is refused or not by what was learnt
    shares, now = {MODEL: make_share(*[steps(10, n=4) for _ in range(4)])}, STANDING_SECONDS + 0.1
    assert LEAST_FULL < utilisation(shares, now) + 1 / 12 < MOST_FULL
    assert not guard.refuses(steps(10), shares, now)
    for _ in range(2000):
        guard.learn(late)
    assert guard.refuses(steps(10), shares, now)


def test_an_idle_model_takes_what_it_takes_alone() -> None:
    share = make_share()
    share.stretch = 5.0  # of a load that is gone
    assert expected_seconds(steps(10), {MODEL: share}, 0.0) == 10.0
    assert expected_seconds(steps(10, n=8), {MODEL: make_share()}, 0.0) == 20.0  # four at a time


def test_images_ahead_that_leave_let_the_next_ones_in() -> None:
    """Four run, for 3, 3, 5 and 5 steps; two wait; so the new one starts at 3, beside the last of them."""
    share = make_share(steps(3, n=2), steps(5, n=2), steps(1), steps(2))
    run_step(share.scheduler)
    expected = 2 + 1 + 4  # to the end of the first two, the shorter of the waiting ones, its own
    assert expected_seconds(steps(4), {MODEL: share}, 0.0) == expected


def test_a_long_queue_is_played_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A play simulates the steps of the queue. Between two plays the estimate follows what was added and done."""
    share = make_share(*(steps(10, n=4) for _ in range(8)))
    played, play = [], admission._play
    monkeypatch.setattr(admission, "_play", lambda *given: played.append(given) or play(*given))

    def ask(now: float) -> float:
        return expected_seconds(steps(10), {MODEL: share}, now, exact=False)

    assert [ask(0.0) for _ in range(100)] == [90.0] * 100  # behind eight that each take the device for ten steps
    assert len(played) == 1
    share.scheduler.add(steps(10, n=4), 0.0)
    assert ask(PLAY_SECONDS / 2) == 100.0
    for _ in range(20):
        run_step(share.scheduler)
    assert ask(PLAY_SECONDS / 2) == 80.0
    assert len(played) == 1
    assert ask(PLAY_SECONDS) == 80.0
    assert len(played) == 2


def test_a_short_queue_is_always_played() -> None:
    share = make_share(*(steps(10) for _ in range(FEW_IMAGES)))
    assert expected_seconds(steps(10), {MODEL: share}, 0.0, exact=False) == 50.0
    for _ in range(2):
        run_step(share.scheduler)
    assert expected_seconds(steps(10), {MODEL: share}, 0.0, exact=False) == 48.0


def test_the_estimate_learns_what_others_add() -> None:
    share, other = make_share(), make_share(steps(1000))
    shares = {MODEL: share, "other": other}
    for _ in range(60):
        request = steps(10)
        expected_seconds(request, shares, 0.0)
        request.arrived, request.finished = 0.0, 25.0
        learn(share, request)
    assert expected_seconds(steps(10), shares, 0.0) == pytest.approx(25.0, rel=0.02)


def test_requests_that_have_ended_are_not_counted_for_long() -> None:
    """A fast device answers hundreds within the time after which the demand is summed up anew."""
    guard, share = OverloadGuard(), make_share()
    for _ in range(100):  # one after the other
        request = steps(1)
        assert not guard.refuses(request, {MODEL: share}, now=0.0)
        share.scheduler.add(request, now=0.0)
        run_step(share.scheduler)
        assert guard._sums[MODEL].demand.rows <= 2
