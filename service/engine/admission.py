"""Admission control: the load that requests put on the device, and the expected latency of a new one.

Letters: R forward rows of a model's next step, k steps that a request still needs.
"""

from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple

from service.engine.policy import DeviceShare, Outlook
from service.engine.request import ImageTask, Request, RequestStatus

# These numbers were settled on a virtual clock (docs/experiments.md).
# Utilisation above which requests are refused. It exceeds 1, because requests never all need their pace at once. It
# adapts while requests are refused: a late answer lowers it, ten in time raise it as much.
LEAST_FULL, FIRST_FULL, MOST_FULL = 1.1, 1.25, 1.5
LATE_LOWERS, IN_TIME_RAISES = 0.005, 0.0005
STANDING_SECONDS = 0.2  # a shorter overload is a burst, which is queued
LEARNING_RATE = 0.2  # of DeviceShare.stretch: about the mean of the last five requests that were watched
# A model's demand is summed anew after FRESH_SECONDS, or once at most FRESH_PART of its requests are left. New
# requests are added to the last sum meanwhile, so the cost of a request does not grow with the queue.
FRESH_SECONDS, FRESH_PART = 0.02, 0.75
# For a deadline the queue is simulated anew after PLAY_SECONDS, or always if it has at most FEW_IMAGES images. In
# between, the last result is corrected by the change of the backlog. With 256 requests queued a simulation takes
# 1.6 ms, which is too much for each request of a flood.
PLAY_SECONDS, FEW_IMAGES = 0.05, 16
CALM_SECONDS = 1.0  # without a refusal, until the next burst is queued again


@dataclass(frozen=True, slots=True)
class Demand:
    """What the requests of a model ask of the device."""

    rows: int  # of a step with all of them
    pace: float  # steps a second of the most urgent one

    def __add__(self, other: "Demand") -> "Demand":
        return Demand(self.rows + other.rows, max(self.pace, other.pace))

    def utilisation(self, share: DeviceShare) -> float:
        """Device seconds a second that it takes for every request to meet its target, or to end if it is late.

        With those of all models 1 is a full device, as in the test of earliest-deadline-first schedules (Liu &
        Layland 1973).
        """
        cap = share.scheduler.max_rows
        return self.pace * share.step_seconds(min(self.rows, cap)) * max(1.0, self.rows / cap)


NOTHING = Demand(0, 0.0)


class CachedDemand(NamedTuple):
    """A model's demand, when it was summed, and of how many requests."""

    at: float
    requests: int
    demand: Demand


def demand(share: DeviceShare, now: float) -> Demand:
    """The demand of all requests of a model."""
    requests = share.scheduler.requests.values()
    return sum((_demand_of(request, now - request.arrived) for request in requests), NOTHING)


def _demand_of(request: Request, age: float) -> Demand:
    open_tasks = [task for task in request.tasks if task.remaining_rows]
    left = max(request.target_seconds - age, request.needed_seconds, 1e-9)  # a late request has a negative rest
    k = max((request.params.num_steps - task.step for task in open_tasks), default=0)
    return Demand(sum(task.rows for task in open_tasks), k / left)


class OverloadGuard:
    """Refuses requests that would be late or make others late, but only while an overload lasts.

    Like CoDel (Nichols & Jacobson 2012) it tells a burst, which a queue absorbs, from a standing queue, which only
    makes every request late.
    """

    def __init__(self) -> None:
        self.full = FIRST_FULL  # utilisation that is too much
        self._full_since: float | None = None
        self._refused: float | None = None  # when it last did
        self._sums: dict[str, CachedDemand] = {}  # by model

    def refuses(self, request: Request, shares: dict[str, DeviceShare], now: float) -> bool:
        """Ask once a request, before it is queued."""
        if self._refused is not None and now - self._refused > CALM_SECONDS:
            self._refused = self._full_since = None
        demands = {model: self._demand(model, share, now) for model, share in shares.items()}
        demands[request.model] += _demand_of(request, 0.0)
        needed = {name: demands[name].utilisation(share) for name, share in shares.items()}
        if sum(needed.values()) > self.full:
            if self._full_since is None:
                self._full_since = now
            stands = self._refused is not None or now - self._full_since >= STANDING_SECONDS
            if stands and needed[request.model] > _part_of(request.model, shares):
                self._refused = now
                return True
        elif self._refused is None:
            self._full_since = None
        seen = self._sums[request.model]
        self._sums[request.model] = CachedDemand(seen.at, seen.requests + 1, demands[request.model])
        return False

    def learn(self, ended: Request) -> None:
        """Adapt the limit by whether a request was in time; only while there are refusals."""
        if self._refused is None or ended.status is RequestStatus.FAILED:
            return
        is_late = ended.finished - ended.arrived >= ended.target_seconds
        full = self.full + (-LATE_LOWERS if is_late else IN_TIME_RAISES)
        self.full = min(max(full, LEAST_FULL), MOST_FULL)

    def _demand(self, model: str, share: DeviceShare, now: float) -> Demand:
        seen, requests = self._sums.get(model, CachedDemand(-inf, 0, NOTHING)), len(share.scheduler.requests)
        if now - seen.at >= FRESH_SECONDS or requests <= FRESH_PART * seen.requests:
            seen = self._sums[model] = CachedDemand(now, requests, demand(share, now))
        return seen.demand


def _part_of(model: str, shares: dict[str, DeviceShare]) -> float:
    """The part of the device that a model gets by its weight, however much the others demand."""
    return shares[model].weight / sum(
        s.weight for name, s in shares.items() if name == model or s.scheduler.has_work
    )


def expected_seconds(new: Request, shares: dict[str, DeviceShare], now: float, exact: bool = True) -> float:
    """Latency of a request that is admitted now.

    The steps of its model up to its last one are simulated. DeviceShare.stretch then accounts for other models and
    later arrivals, by how much they lately delayed other requests.

    Args:
        exact: simulate for this request, whatever that costs.
    """
    share = shares[new.model]
    new.seconds_alone = _seconds_alone(share, new, now, exact)
    is_idle = not any(other.scheduler.has_work for other in shares.values())
    return new.seconds_alone * (1.0 if is_idle else share.stretch)


def is_watched(share: DeviceShare) -> bool:
    """Whether the model learns from a request already: one at a time, so that the cost does not grow with them."""
    return share.watched is not None and share.watched.is_open


def learn(share: DeviceShare, ended: Request) -> None:
    """Update stretch by the latency of a request over its forecast."""
    if ended.seconds_alone:
        seen = (ended.finished - ended.arrived) / ended.seconds_alone
        share.stretch += LEARNING_RATE * (seen - share.stretch)


def _seconds_alone(share: DeviceShare, new: Request, now: float, exact: bool) -> float:
    scheduler, seen = share.scheduler, share.outlook
    full_step = share.step_seconds(scheduler.max_rows)
    turns = -(-sum(task.rows for task in new.tasks) // scheduler.max_rows)
    own = turns * new.params.num_steps * full_step
    is_short = len(scheduler.running) + len(scheduler.waiting) <= FEW_IMAGES
    if exact or is_short or now - seen.at >= PLAY_SECONDS:
        seconds = _play(share, new)
        share.outlook = Outlook(now, seconds - own, scheduler.backlog_rows)
        return seconds
    since = (scheduler.backlog_rows - seen.backlog_rows) / scheduler.max_rows * full_step
    return own + max(0.0, seen.wait + since)


def _play(share: DeviceShare, new: Request) -> float:
    """Simulate the model's steps, from each start or end of an image to the next; seconds until `new` ends."""
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
    """Average rows of the remaining steps; some of them may be without guidance."""
    return round(task.remaining_rows / (task.request.params.num_steps - task.step))
