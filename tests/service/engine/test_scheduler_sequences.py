"""The scheduler under any sequence of commands: its books against the test's own."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.engine.request import ImageTask, Request, RequestStatus
from service.engine.scheduler import Scheduler, SchedulerOutput
from tests.service.engine.rows import finish_step, make_request, run_step

plans = st.lists(st.integers(1, 2), min_size=1, max_size=6)


class SchedulerMachine(RuleBasedStateMachine):
    """Any sequence of commands and steps. Keeps its own books: arrivals, steps done, ends."""

    @initialize(max_rows=st.integers(2, 6), max_requests=st.integers(1, 4), max_evaluations=st.integers(1, 40))
    def start(self, max_rows: int, max_requests: int, max_evaluations: int) -> None:
        self.scheduler = Scheduler(max_rows, max_requests, max_evaluations)
        self.arrivals: list[Request] = []
        self.steps_done: dict[ImageTask, int] = {}
        self.ends: dict[Request, RequestStatus] = {}

    def unended(self) -> list[Request]:
        return [request for request in self.arrivals if request not in self.ends]

    def end(self, request: Request, status: RequestStatus) -> None:
        assert request not in self.ends, "ended twice"
        assert request.status is status
        self.ends[request] = status

    @rule(rows=plans, n=st.integers(1, 4))
    def add(self, rows: list[int], n: int) -> None:
        request, size = make_request(*rows, n=n), n * sum(rows)
        unstarted = [task for task in self.unended_tasks() if task.slot is None and not self.steps_done[task]]
        queued = sum(sum(task.request.plan.rows) for task in unstarted)
        whole = {r for r in self.unended() if all(task in unstarted for task in r.tasks)}
        full = len(whole) >= self.scheduler.max_requests
        full |= bool(unstarted) and queued + size > self.scheduler.max_evaluations
        assert self.scheduler.is_full_for(request) is full
        if not full:
            self.scheduler.add(request, now=0.0)
            self.arrivals.append(request)
            self.steps_done |= dict.fromkeys(request.tasks, 0)

    def unended_tasks(self) -> list[ImageTask]:
        return [task for request in self.unended() for task in request.tasks]

    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def step(self, data: st.DataObject, fails: bool) -> None:
        output = self.scheduler.schedule(now=0.0)
        self.check_step(output)
        failed = data.draw(st.lists(st.sampled_from(output.tasks), max_size=2)) if fails and output.tasks else []
        ended = finish_step(self.scheduler, output, failed)
        assert len(ended) == len(set(ended))
        for task in output.tasks:
            self.steps_done[task] += 1
        broken = {task.request for task in failed}
        for request in ended:
            done = all(self.steps_done[task] == len(request.plan.rows) for task in request.tasks)
            assert request in broken or done
            self.end(request, RequestStatus.FAILED if request in broken else RequestStatus.FINISHED)
        assert broken <= set(ended)

    def check_step(self, output: SchedulerOutput) -> None:
        scheduler = self.scheduler
        assert output.num_rows == sum(task.rows for task in output.tasks) <= scheduler.max_rows
        assert len(output.tasks) == len(set(output.tasks))
        assert all(task.step == self.steps_done[task] for task in output.tasks)
        assert set(output.tasks) <= set(scheduler.running)
        assert bool(output.tasks) == bool(self.unended())
        chosen, left_out = set(output.tasks), [t for t in self.unended_tasks() if self.steps_done[t] <= t.last_step]
        if left_out:  # the oldest image never waits: all have the same slack here
            assert left_out[0] in chosen
        for task in left_out:  # no room is left that another one could use
            begins = task.slot is None and not len(scheduler.free_slots)
            assert task in chosen or begins or output.num_rows + task.rows > scheduler.max_rows

    @precondition(lambda self: self.arrivals)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.arrivals))
        aborted = self.scheduler.abort(request.request_id, now=0.0)
        assert aborted is (None if request in self.ends else request)
        if aborted:
            self.end(request, RequestStatus.ABORTED)

    @invariant()
    def slots_are_counted(self) -> None:
        slots = [task.slot for task in self.scheduler.running]
        assert len(slots) == len(set(slots))
        assert all(slot is not None and 0 <= slot < self.scheduler.num_slots for slot in slots)
        assert len(self.scheduler.free_slots) + len(slots) == self.scheduler.num_slots
        ended = [task for request in self.ends for task in request.tasks]
        assert all(task.slot is None for task in ended)

    @invariant()
    def books_agree(self) -> None:
        scheduler, unended = self.scheduler, self.unended()
        assert list(scheduler.requests.values()) == unended
        assert scheduler.has_work is bool(unended)
        tasks = self.unended_tasks()
        assert scheduler.backlog_rows == sum(sum(t.request.plan.rows[self.steps_done[t] :]) for t in tasks)
        assert scheduler.num_waiting == sum(
            all(self.steps_done[t] == 0 and t.slot is None for t in r.tasks) for r in unended
        )

    @invariant()
    def queue_is_bounded(self) -> None:
        scheduler = self.scheduler
        assert scheduler.num_waiting <= scheduler.max_requests
        queued = sum(task.remaining_rows for task in scheduler.waiting)
        alone = len({task.request for task in scheduler.waiting}) <= 1
        assert queued <= scheduler.max_evaluations or alone

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(10_000):
            if not self.scheduler.has_work:
                break
            for request in run_step(self.scheduler):
                self.end(request, RequestStatus.FINISHED)
        assert set(self.ends) == set(self.arrivals)
        assert len(self.scheduler.free_slots) == self.scheduler.num_slots
        assert not self.scheduler.running
        assert not self.scheduler.waiting


SchedulerMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestAnySequence = SchedulerMachine.TestCase
