"""Which model runs the next step when several share the device: least relative slack within weights.

A request's target is a multiple of its own idle latency, so short requests are urgent sooner than long ones. The
model that holds the request nearest to its target goes next, unless another one has fallen behind its share.
"""

from dataclasses import dataclass

from service.engine.request import Request
from service.engine.scheduler import Scheduler

TARGET_FACTOR = 3.0  # target latency over idle latency
MAX_LAG = 0.5  # seconds of weighted device time a model may fall behind before it goes first


@dataclass(slots=True)
class DeviceShare:
    """A model's claim on the device."""

    scheduler: Scheduler
    weight: float = 1.0
    virtual_time: float = 0.0  # device seconds used over weight
    was_busy: bool = False

    def relative_slack(self, now: float) -> float:
        """Least slack among the requests that need another step, in units of their idle latency."""
        return min(slack(r, now) for r in self.scheduler.requests.values() if r.remaining_rows)


def slack(request: Request, now: float) -> float:
    """(target - now - time still needed) / idle latency; negative when the target cannot be met."""
    idle = max(request.idle_seconds, 1e-9)
    needed = idle * request.remaining_rows / request.total_rows
    return (request.arrived + TARGET_FACTOR * idle - now - needed) / idle


def pick(shares: dict[str, DeviceShare], now: float) -> str | None:
    """The model that runs next, None if none has a step to launch."""
    busy = {name: share for name, share in shares.items() if share.scheduler.has_work}
    _wake(shares, busy)
    if len(busy) <= 1:
        return next(iter(busy), None)
    behind = min(busy, key=lambda name: busy[name].virtual_time)
    lead = max(share.virtual_time for share in busy.values())
    if lead - busy[behind].virtual_time > MAX_LAG:
        return behind
    return min(busy, key=lambda name: busy[name].relative_slack(now))


def _wake(shares: dict[str, DeviceShare], busy: dict[str, DeviceShare]) -> None:
    """A model that was idle starts level with those that were not: idle time earns no credit and no debt."""
    latest = max((share.virtual_time for share in shares.values()), default=0.0)
    level = min((share.virtual_time for share in busy.values() if share.was_busy), default=latest)
    for name, share in shares.items():
        if name in busy and not share.was_busy:
            share.virtual_time = max(share.virtual_time, level)
        share.was_busy = name in busy
