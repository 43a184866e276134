"""Which images take part in the next step of one model; images join and leave at every step.

There is no compatibility key: steps, sampler, guidance and seed are data of a row. All take part where they fit,
else those of the least slack (order.py). An image that is left out keeps its slot and its latents.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from service.engine.order import LeastSlack
from service.engine.request import ImageTask, Request, RequestStatus

SLOTS_PER_ROW = 2  # images that may have begun, over the rows of a step; 4 and 8 gave the same


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step of one model."""

    tasks: list[ImageTask]  # every one holds a slot
    num_rows: int  # forward rows, at most the cap
    leaving: list[ImageTask] = field(default_factory=list)  # those whose last step it is; known once it is launched


class Scheduler:
    """Requests of one model: waiting -> running (in a slot) -> gone.

    Args:
        max_rows: forward rows a step, at least 2 so that a guided image fits.
        max_requests, max_evaluations: bounds of the queue; evaluations are images x steps x rows.
        seconds_per_row: of the device, for backlog_seconds.
    """

    def __init__(
        self,
        max_rows: int,
        max_requests: int,
        max_evaluations: int,
        seconds_per_row: Callable[[], float] = lambda: 0.0,
    ):
        if max_rows < 2:
            raise ValueError(f"max_rows must be at least 2 (one guided image), got {max_rows}")
        self.max_rows, self.max_requests, self.max_evaluations = max_rows, max_requests, max_evaluations
        self.seconds_per_row = seconds_per_row
        self.num_slots = SLOTS_PER_ROW * max_rows
        self.free_slots = list(range(self.num_slots - 1, -1, -1))  # the last one is taken next
        self.waiting: deque[ImageTask] = deque()
        self.running: list[ImageTask] = []  # who holds a slot
        self.requests: dict[str, Request] = {}
        self._with_deadline: dict[str, Request] = {}
        self._order = LeastSlack()
        self.num_waiting = 0  # requests of which no image has started
        self.queued_rows = 0  # evaluations of images that have not started
        self.backlog_rows = 0  # evaluations that accepted requests still need

    @property
    def has_work(self) -> bool:
        """Whether an image is left to launch; requests may have others on the device."""
        return bool(self.running or self.waiting)

    @property
    def backlog_seconds(self) -> float:
        return self.backlog_rows * self.seconds_per_row()

    def is_full_for(self, request: Request) -> bool:
        """Whether either bound would be passed. An empty queue takes a request of any size."""
        evaluations = self.queued_rows + request.remaining_rows if self.waiting else 0
        return self.num_waiting >= self.max_requests or evaluations > self.max_evaluations

    def add(self, request: Request, now: float) -> None:
        """Queue a request for which it is not full."""
        request.arrived = now
        self.requests[request.request_id] = request
        if request.deadline_seconds is not None:
            self._with_deadline[request.request_id] = request
        self._order.add(request, now)
        self.waiting.extend(request.tasks)
        self.num_waiting += 1
        self.queued_rows += request.remaining_rows
        self.backlog_rows += request.remaining_rows

    def schedule(self, now: float) -> SchedulerOutput:
        """The images of the next step: all of them, or those of least slack where they do not fit."""
        tasks = [*self.running, *self.waiting]
        rows = sum([task.plan.rows[task.step] for task in tasks])
        if rows > self.max_rows or len(self.waiting) > len(self.free_slots):
            tasks = self.select(now)
            rows = sum(task.rows for task in tasks)
        else:
            self._order.forget()
        if begin := [task for task in tasks if task.slot is None]:
            for task in begin:
                self._start(task, now)
            self.waiting = deque(task for task in self.waiting if task.slot is None)
        return SchedulerOutput(tasks, rows)

    def select(self, now: float) -> list[ImageTask]:
        return self._order.choose(self.requests.values(), self.max_rows, len(self.free_slots), now)

    def _start(self, task: ImageTask, now: float) -> None:
        task.slot = self.free_slots.pop()
        self.running.append(task)
        self.queued_rows -= task.remaining_rows
        if task.request.status is RequestStatus.WAITING:
            self.num_waiting -= 1
            task.request.status, task.request.started = RequestStatus.RUNNING, now

    def advance(self, output: SchedulerOutput) -> None:
        """Count a launched step: its images are a step further, and finished ones leave their slots."""
        self.backlog_rows -= output.num_rows
        output.leaving.extend(task for task in output.tasks if task.step == task.last_step)
        for task in output.tasks:
            task.step += 1
        for task in output.leaving:
            self._release(task)

    def end(self, output: SchedulerOutput, failed: dict[ImageTask, str], now: float) -> list[Request]:
        """Take the results of a launched step; returns the requests it ended. A failed image ends its request."""
        ended = []
        for request, task in ((task.request, task) for task in (*failed, *output.leaving)):
            if request.status is not RequestStatus.RUNNING:
                continue  # ended by another of its images, or while the step was on the device
            request.error = failed.get(task, "")
            if request.error or len(request.images) == len(request.tasks):
                self._end(request, RequestStatus.FAILED if request.error else RequestStatus.FINISHED, now)
                ended.append(request)
        return ended

    def expire(self, now: float) -> list[Request]:
        """End the requests whose deadline has passed, waiting or running; returns them."""
        late = [request for request in self._with_deadline.values() if request.deadline <= now]
        for request in late:
            self._end(request, RequestStatus.EXPIRED, now)
        return late

    def abort(self, request_id: str, now: float) -> Request | None:
        """Forget a request at once, waiting or running; None if it is not here (any more)."""
        if (request := self.requests.get(request_id)) is not None:
            self._end(request, RequestStatus.ABORTED, now)
        return request

    def _end(self, request: Request, status: RequestStatus, now: float) -> None:
        del self.requests[request.request_id]
        self._with_deadline.pop(request.request_id, None)
        self.num_waiting -= request.status is RequestStatus.WAITING
        if queued := sum(t.remaining_rows for t in request.tasks if t.slot is None and t.step == 0):
            self.queued_rows -= queued
            self.waiting = deque(task for task in self.waiting if task.request is not request)
        self.backlog_rows -= request.remaining_rows
        request.status, request.finished = status, now
        for task in (task for task in request.tasks if task.slot is not None):
            self._release(task)

    def _release(self, task: ImageTask) -> None:
        assert task.slot is not None  # callers checked
        self.running.remove(task)  # raises if it is not there, so no slot is freed twice
        self.free_slots.append(task.slot)
        task.slot = None
