"""The scheduler without a device: what it promises, case by case."""

import pytest

from service.engine.order import ORDER_SECONDS, LeastSlack
from service.engine.request import Request, RequestStatus
from service.engine.scheduler import Scheduler
from tests.service.engine.rows import UNBOUNDED, make_request, make_scheduler, members, run_step
from tests.service.process import run_program


def test_importing_the_scheduler_loads_no_torch_and_no_numpy() -> None:
    program = "import sys, service.engine.scheduler; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = run_program(program)
    assert done.stdout.strip() == "[]", done.stderr


def test_first_come_first_served() -> None:
    requests = [make_request(1, 1, 1) for _ in range(5)]
    scheduler = make_scheduler(2, *requests)
    ended = [request for now in range(9) for request in run_step(scheduler, now=float(now))]
    assert ended == requests
    assert [request.started for request in requests] == [0, 0, 3, 3, 6]
    assert [request.finished for request in requests] == [2, 2, 5, 5, 8]


def test_a_guided_image_waits_for_its_rows_and_not_longer() -> None:
    running, guided = make_request(1, 1), make_request(2)
    small = [make_request(1) for _ in range(5)]
    scheduler = make_scheduler(2, running, guided, *small)
    assert members(scheduler) == [running, small[0]]  # one row is free, and the guided image needs two
    run_step(scheduler)
    assert members(scheduler) == [running, small[1]]
    run_step(scheduler)
    assert members(scheduler) == [guided]


def timed(*rows: int, n: int = 1, idle: float, deadline: float | None = None) -> Request:
    request = make_request(*rows, n=n)
    request.idle_seconds, request.deadline_seconds = idle, deadline
    return request


def test_the_least_slack_goes_first_where_not_all_fit() -> None:
    """After a second, the long one can wait for 1.99 of its idle latencies, the short one for 1.5 of its own."""
    long, short = timed(*[1] * 100, n=2, idle=100.0), timed(1, 1, idle=2.0)
    urgent = timed(1, 1, idle=2.0, deadline=3.0)
    scheduler = make_scheduler(2, long, short)
    assert members(scheduler) == [long, long]  # all have the same slack when they arrive
    assert [task.request for task in scheduler.schedule(now=1.0).tasks] == [short, long]
    scheduler.add(urgent, now=1.0)
    assert [task.request for task in scheduler.schedule(now=1.0).tasks] == [urgent, short]
    assert all(task.slot is not None for task in long.tasks)  # they have begun, and keep their places


def test_the_order_is_made_anew_every_two_ms_and_newcomers_have_their_place_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[float] = []
    sort = LeastSlack._sort
    monkeypatch.setattr(LeastSlack, "_sort", lambda self, given, now: (made.append(now), sort(self, given, now))[1])
    crowd = [timed(*[1] * 100, idle=10.0) for _ in range(3)]
    scheduler = make_scheduler(2, *crowd)
    for step in range(10):
        run_step(scheduler, now=ORDER_SECONDS * step / 9)
    assert made == [0.0, ORDER_SECONDS]
    urgent = timed(1, 1, idle=2.0, deadline=2.1)
    scheduler.add(urgent, now=1.5 * ORDER_SECONDS)
    assert urgent in [task.request for task in scheduler.schedule(1.5 * ORDER_SECONDS).tasks]
    scheduler.abort(urgent.request_id, now=1.5 * ORDER_SECONDS)
    assert urgent not in [task.request for task in scheduler.schedule(1.5 * ORDER_SECONDS).tasks]
    assert len(made) == 2


def test_late_requests_go_after_those_in_time() -> None:
    late, sooner = timed(1, 1, idle=2.0), timed(1, 1, idle=2.0)
    scheduler = make_scheduler(2, late)
    scheduler.add(sooner, now=100.0)
    scheduler.add(timed(1, 1, idle=2.0), now=100.0)
    assert late not in [task.request for task in scheduler.schedule(now=20.0).tasks]


def test_no_request_waits_for_ever_however_late() -> None:
    """Twice as many requests arrive as fit; an overdue one gets rows of every step."""
    late, scheduler = timed(*[2] * 10, idle=10.0), Scheduler(4, UNBOUNDED, UNBOUNDED)
    scheduler.add(late, now=0.0)
    for second in range(1000, 1010):
        for _ in range(4):
            scheduler.add(timed(1, 1, idle=2.0), now=float(second))
        run_step(scheduler, now=float(second))
    assert late.status is RequestStatus.FINISHED


def test_a_short_request_joins_within_one_step_and_leaves_first() -> None:
    long, short = make_request(*[1] * 50), make_request(1, 1)
    scheduler = make_scheduler(4, long)
    run_step(scheduler, now=1.0)
    scheduler.add(short, now=1.5)
    assert run_step(scheduler, now=2.0) == []
    assert short.started == 2.0
    assert run_step(scheduler, now=3.0) == [short]
    assert (short.arrived, short.finished) == (1.5, 3.0)
    assert long.status is RequestStatus.RUNNING
    assert long.tasks[0].step == 3  # the short one did not delay it


def test_a_running_image_without_room_waits_one_step() -> None:
    """Both start unguided and turn guided; three rows hold one guided image and a half."""
    older, younger = make_request(1, 2), make_request(1, 2)
    scheduler = make_scheduler(3, older, younger)
    run_step(scheduler)
    assert members(scheduler) == [older]
    assert run_step(scheduler) == [older]
    assert younger.tasks[0].slot is not None  # it keeps its slot and its step
    assert younger.tasks[0].step == 1
    assert run_step(scheduler) == [younger]


def test_a_running_image_without_room_cannot_starve() -> None:
    """One-row requests arrive at every step; the guided image still runs as soon as the older one has ended."""
    older, guided = make_request(1, 2, 2, 2), make_request(1, 2, 2)
    scheduler = make_scheduler(3, older, guided)
    ended = []
    for step in range(6):
        ended += run_step(scheduler, now=float(step))
        scheduler.add(make_request(1), now=float(step))
    assert older.finished == 3.0
    assert guided.finished == 5.0
    assert len(ended) > 4  # the newcomers used the odd row meanwhile


def test_an_empty_queue_takes_a_request_larger_than_the_bound() -> None:
    scheduler = Scheduler(2, max_requests=5, max_evaluations=10)
    large = make_request(*[2] * 20)
    scheduler.add(large, now=0.0)
    assert scheduler.is_full_for(make_request(1))
    run_step(scheduler)  # the large one runs, and no longer stands in the queue
    assert not scheduler.is_full_for(fitting := make_request(*[1] * 10))
    scheduler.add(fitting, now=0.0)
    assert scheduler.is_full_for(make_request(1))


def test_the_queue_is_bounded_in_requests() -> None:
    scheduler = Scheduler(2, max_requests=2, max_evaluations=UNBOUNDED)
    for _ in range(2):
        scheduler.add(make_request(1), now=0.0)
    assert scheduler.is_full_for(make_request(1))
    run_step(scheduler)
    assert not scheduler.is_full_for(make_request(1))


def test_the_backlog_is_the_time_to_work_it_off() -> None:
    scheduler = Scheduler(2, max_requests=1, max_evaluations=UNBOUNDED, seconds_per_row=lambda: 0.25)
    scheduler.add(make_request(2, 2, 1, n=2), now=0.0)
    run_step(scheduler)  # two of the ten rows are done
    scheduler.add(make_request(1, 1), now=0.0)
    assert scheduler.backlog_seconds == (10 - 2 + 2) * 0.25


def test_abort_is_idempotent() -> None:
    waiting, running, finished = make_request(1), make_request(1, 1), make_request(1)
    scheduler = make_scheduler(2, running, finished, waiting)
    assert run_step(scheduler) == [finished]
    assert scheduler.abort(finished.request_id, now=1.0) is None
    for request in (waiting, running):
        assert scheduler.abort(request.request_id, now=1.0) is request
        assert scheduler.abort(request.request_id, now=2.0) is None
        assert (request.status, request.finished) == (RequestStatus.ABORTED, 1.0)
    assert finished.status is RequestStatus.FINISHED
    assert scheduler.abort("nobody", now=1.0) is None
    assert len(scheduler.free_slots) == scheduler.num_slots


def test_abort_of_a_half_started_request_frees_its_slots_and_its_places_in_the_queue() -> None:
    many, other = make_request(1, 1, 1, n=5), make_request(1, 1)
    scheduler = make_scheduler(3, many, other)
    run_step(scheduler)
    assert len(scheduler.waiting) == 2 + 1
    assert scheduler.abort(many.request_id, now=1.0) is many
    assert many.remaining_rows == 5 * 3 - 3  # what the abort has spared
    assert list(scheduler.waiting) == other.tasks
    assert len(scheduler.free_slots) == scheduler.num_slots
    assert members(scheduler) == [other]


def test_a_failed_image_fails_its_request_and_no_other() -> None:
    doomed, other = make_request(1, 1, n=3), make_request(1, 1)
    scheduler = make_scheduler(3, doomed, other)  # the third image of doomed runs, other waits
    assert run_step(scheduler, failed=[doomed.tasks[1]], now=7.0) == [doomed]
    assert (doomed.status, doomed.error, doomed.finished) == (RequestStatus.FAILED, "broken", 7.0)
    assert len(scheduler.free_slots) == scheduler.num_slots
    assert run_step(scheduler) == []
    assert run_step(scheduler) == [other]
    assert other.status is RequestStatus.FINISHED


def test_two_failed_images_end_their_request_once() -> None:
    doomed = make_request(1, 1, n=3)
    scheduler = make_scheduler(3, doomed)
    assert run_step(scheduler, failed=doomed.tasks[:2]) == [doomed]
    assert not scheduler.has_work


def test_requests_end_in_order_of_arrival_within_a_step() -> None:
    requests = [make_request(1) for _ in range(30)]
    scheduler = make_scheduler(30, *requests)
    assert run_step(scheduler) == requests


def test_a_cap_that_holds_no_guided_image_is_refused() -> None:
    with pytest.raises(ValueError, match="max_rows must be at least 2"):
        Scheduler(1, 1, 1)
