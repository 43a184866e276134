"""Requests whose plan is two tuples of row counts, and a step without a device."""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, count

from service.engine.request import ImageTask, Plan, Request
from service.engine.scheduler import Scheduler, SchedulerOutput
from service.wire.messages import SamplingParams

UNBOUNDED = 10**9
_ids = count()


def make_request(*rows: int, n: int = 1) -> Request:
    params = SamplingParams("model", 0, len(rows), "ddim", 1.0, (0.0, 1.0), seeds=tuple(range(n)))
    remaining = tuple(accumulate(reversed(rows), initial=0))[::-1]
    return Request(f"request {next(_ids)}", params, Plan(rows, remaining, dict(Counter(rows))))


def make_scheduler(max_rows: int = 4, *requests: Request) -> Scheduler:
    scheduler = Scheduler(max_rows, UNBOUNDED, UNBOUNDED)
    for request in requests:
        scheduler.add(request, now=0.0)
    return scheduler


def finish_step(
    scheduler: Scheduler, output: SchedulerOutput, failed: Sequence[ImageTask] = (), now: float = 0.0
) -> list[Request]:
    """What the runner and the core do after schedule."""
    for task in output.tasks:
        if task.step == task.last_step and task not in failed:
            task.request.images[task.index] = f"image {task.index}"
    scheduler.advance(output)
    return scheduler.end(output, dict.fromkeys(failed, "broken"), now)


def run_step(scheduler: Scheduler, failed: Sequence[ImageTask] = (), now: float = 0.0) -> list[Request]:
    return finish_step(scheduler, scheduler.schedule(now), failed, now)


def members(scheduler: Scheduler) -> list[Request]:
    """Whose images are in the next step."""
    return [task.request for task in scheduler.schedule(0.0).tasks]
