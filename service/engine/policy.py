"""Which model runs the next step when several share the device: least relative slack within weights.

A request's target is its deadline, or a multiple of its own idle latency, so that short requests are urgent sooner
than long ones. The model that holds the request nearest to its target goes next. A model that has used less of the
device than its weight gives it, and that is about to be late, goes before it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from service.engine.order import ORDER_SECONDS
from service.engine.request import Request
from service.engine.scheduler import Scheduler

MAX_LAG = 0.02  # seconds of weighted device time that a model may fall behind
AT_RISK = 0.1  # a model that lags goes first if another one's step would leave it less relative slack than this
# The times measured at the start are those of the device alone. With the host's, a step of the shipped DiT took
# twice as long on an H200, at any row count. DeviceShare.slowdown follows that ratio at this rate. A pause of the
# host is no slow step, so the ratio of one step counts as MOST_SLOWDOWN at most.
SLOWDOWN_RATE, MOST_SLOWDOWN = 1 / 50, 20.0


class Outlook(NamedTuple):
    """The last forecast of a new request's wait, which is reused for a while; see service/engine/admission.py."""

    at: float
    wait: float  # seconds until it would begin
    backlog_rows: int  # of the model at that time


@dataclass(slots=True)
class DeviceShare:
    """A model's claim on the device."""

    scheduler: Scheduler
    weight: float = 1.0
    measured_seconds: Callable[[int], float] = lambda rows: 0.0  # of a step at the start, by row count
    slowdown: float = 1.0  # recent mean of the time of a step over the measured one
    stretch: float = 1.0  # recent mean of latency over what the model's own queue at admission explains
    watched: Request | None = None  # the request that updates stretch next
    outlook: Outlook = Outlook(-math.inf, 0.0, 0)
    virtual_time: float = 0.0  # device seconds used over weight
    was_busy: bool = False
    _slacks: dict[bool, tuple[float, float]] = field(default_factory=dict)  # cached: when, least slack

    def step_seconds(self, rows: int) -> float:
        """What a step of so many rows takes lately, with the host's part."""
        return self.slowdown * self.measured_seconds(rows)

    def learn_step(self, rows: int, seconds: float) -> None:
        """Compare a step with what was measured."""
        if measured := self.measured_seconds(rows):
            self.slowdown += SLOWDOWN_RATE * (min(seconds / measured, MOST_SLOWDOWN) - self.slowdown)

    def relative_slack(self, now: float, ahead: float = 0.0) -> float:
        """Least slack among the requests that need another step, in units of their idle latency.

        At least 0, so that requests that are late already do not make others late. Cached for ORDER_SECONDS.

        Args:
            ahead: seconds after `now` for which the slack is computed.
        """
        at, least = self._slacks.get(ahead > 0, (-math.inf, 0.0))
        if now - at >= ORDER_SECONDS:
            tasks = [*self.scheduler.running, *self.scheduler.waiting]
            least = max(0.0, min([request.slack(now + ahead) for request in {task.request for task in tasks}]))
            self._slacks[ahead > 0] = now, least
        return least


Policy = Callable[[dict[str, DeviceShare], float], str | None]  # shares by model, now -> the model that runs


def pick(shares: dict[str, DeviceShare], now: float) -> str | None:
    """The model that runs next, None if none has a step to launch."""
    busy = wake(shares)
    if len(busy) <= 1:
        return next(iter(busy), None)
    slacks = {name: share.relative_slack(now) for name, share in busy.items()}
    lead = max(share.virtual_time for share in busy.values())
    behind = [name for name, share in busy.items() if lead - share.virtual_time > MAX_LAG]
    blocked = max(share.step_seconds(share.scheduler.max_rows) for share in busy.values())
    at_risk = [name for name in behind if busy[name].relative_slack(now, blocked) < AT_RISK]
    return min(at_risk or busy, key=lambda name: (slacks[name], busy[name].virtual_time))


def wake(shares: dict[str, DeviceShare]) -> dict[str, DeviceShare]:
    """The shares that have work, by model.

    A model that was idle starts level with those that were not: idle time earns no credit and no debt.
    """
    busy = {name: share for name, share in shares.items() if share.scheduler.has_work}
    latest = max((share.virtual_time for share in shares.values()), default=0.0)
    level = min((share.virtual_time for share in busy.values() if share.was_busy), default=latest)
    for name, share in shares.items():
        if name in busy and not share.was_busy:
            share.virtual_time = max(share.virtual_time, level)
        share.was_busy = name in busy
    return busy
