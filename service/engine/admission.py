"""Whether the device can take one more request: what is asked of it, and how long an answer would take.

Letters: R forward rows of a model's next step, k steps that a request still needs.
"""

from heapq import heappop, heappush

from service.engine.policy import DeviceShare, needed_seconds, target_seconds
from service.engine.request import ImageTask, Request

FULL = 1.1  # utilisation that is too much; estimates are pessimistic: all requests never need their pace at once
STANDING_SECONDS = 0.25  # a burst may pass FULL for so long and is queued
OWN_PART = 0.85  # of its part of the device, by weight: what a model gets whatever the others ask for
LEARNING_RATE = 0.1  # of the last ten requests or so
CALM_SECONDS = 1.0  # without a refusal, until the next burst is queued again


class OverloadGuard:
    """Refuses what would make itself or others late, but only under a load that stands.

    Like CoDel (Nichols & Jacobson 2012) it tells a burst, which a queue is for, from a standing queue, which
    makes everybody late for ever and serves nobody.
    """

    def __init__(self) -> None:
        self._full_since: float | None = None
        self._refused: float | None = None  # when it last did

    def refuses(self, request: Request, shares: dict[str, DeviceShare], now: float) -> bool:
        """Ask once a request, before it is queued."""
        if self._refused is not None and now - self._refused > CALM_SECONDS:
            self._refused = self._full_since = None
        if not _is_too_much(request, shares, now):
            if self._refused is None:
                self._full_since = None
            return False
        if self._full_since is None:
            self._full_since = now
        if self._refused is None and now - self._full_since < STANDING_SECONDS:
            return False
        self._refused = now
        return True


def _is_too_much(request: Request, shares: dict[str, DeviceShare], now: float) -> bool:
    """More than the device has, and more than its model's part: the others' flood is not its fault."""
    model = request.params.model
    weights = sum(share.weight for name, share in shares.items() if name == model or share.scheduler.has_work)
    own = _utilisation(shares[model], now, request)
    return utilisation(shares, now, request) > FULL and own > OWN_PART * shares[model].weight / weights


def utilisation(shares: dict[str, DeviceShare], now: float, new: Request | None = None) -> float:
    """Device seconds a second that all models need so that every request which still can meets its target.

    1 is a full device, as in the test of earliest-deadline-first schedules (Liu & Layland 1973). A new request is
    counted with the others of its model.
    """
    return sum(
        _utilisation(share, now, new if new is not None and new.params.model == model else None)
        for model, share in shares.items()
    )


def _utilisation(share: DeviceShare, now: float, new: Request | None) -> float:
    """The pace of its most urgent request times the seconds of a step with all of them."""
    rows, pace, cap = 0, 0.0, share.scheduler.max_rows
    for request in (*share.scheduler.requests.values(), *([new] if new else [])):
        open_tasks = [task for task in request.tasks if task.remaining_rows]
        rows += sum(task.rows for task in open_tasks)
        left = target_seconds(request) - (0.0 if request is new else now - request.arrived)
        if open_tasks and left >= needed_seconds(request):  # the others are late whatever happens
            k = max(request.params.num_steps - task.step for task in open_tasks)
            pace = max(pace, k / max(left, 1e-9))
    return pace * share.step_seconds(min(rows, cap)) * max(1.0, rows / cap)


def expected_seconds(new: Request, shares: dict[str, DeviceShare]) -> float:
    """Latency of a request that is admitted now.

    The steps of its model up to its last one are played; what other models and later arrivals will add is taken
    from what they lately added to others.
    """
    share = shares[new.params.model]
    new.seconds_alone = _seconds_alone(share, new)
    is_idle = not any(other.scheduler.has_work for other in shares.values())
    return new.seconds_alone * (1.0 if is_idle else share.stretch)


def learn(share: DeviceShare, ended: Request) -> None:
    """Compare what was foretold with what came."""
    if ended.seconds_alone:
        seen = (ended.finished - ended.arrived) / ended.seconds_alone
        share.stretch += LEARNING_RATE * (seen - share.stretch)


def _seconds_alone(share: DeviceShare, new: Request) -> float:
    """Play the model's steps from one event, an image that ends or starts, to the next."""
    cap, step, seconds, rows = share.scheduler.max_rows, 0, 0.0, 0
    waiting = [*share.scheduler.running, *share.scheduler.waiting, *new.tasks][::-1]
    running: list[tuple[int, int]] = []  # last step and rows of each image, a heap
    last = -1  # of the new request's images
    while waiting or step < last:
        while waiting and rows + waiting[-1].rows <= cap:
            task = waiting.pop()
            ends = step + task.request.params.num_steps - task.step
            heappush(running, (ends, _mean_rows(task)))
            rows += _mean_rows(task)
            last = max(last, ends) if task.request is new else last
        until = running[0][0]
        seconds += (until - step) * share.step_seconds(min(rows, cap))
        step = until
        while running and running[0][0] == step:
            rows -= heappop(running)[1]
    return seconds


def _mean_rows(task: ImageTask) -> int:
    """Guidance may rest for a part of the steps."""
    return round(task.remaining_rows / (task.request.params.num_steps - task.step))
