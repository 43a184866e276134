"""Which model runs the next step when several share the device: least relative slack within weights.

A request's target is a multiple of its own idle latency, so short requests are urgent sooner than long ones. The
model that holds the request nearest to its target goes next, unless another one has fallen behind its share.
"""

from dataclasses import dataclass

from service.engine.scheduler import Scheduler

TARGET_FACTOR = 3.0  # target latency over idle latency
MAX_LAG = 0.5  # seconds of weighted device time a model may fall behind before it goes first


@dataclass(slots=True)
class DeviceShare:
    """A model's claim on the device."""

    scheduler: Scheduler
    seconds_per_row: float  # of a request that runs alone
    weight: float = 1.0
    virtual_time: float = 0.0  # device seconds used over weight
    was_busy: bool = False

    def relative_slack(self, now: float) -> float:
        """Least slack among the model's requests, in units of their idle latency."""
        return min(
            slack(request.arrived, request.total_rows, request.remaining_rows, self.seconds_per_row, now)
            for request in self.scheduler.requests.values()
        )


def slack(arrived: float, total_rows: int, remaining_rows: int, seconds_per_row: float, now: float) -> float:
    """(target - now - time still needed) / idle latency; negative when the target cannot be met."""
    idle = total_rows * seconds_per_row
    return (arrived + TARGET_FACTOR * idle - now - remaining_rows * seconds_per_row) / max(idle, 1e-9)


def pick(shares: dict[str, DeviceShare], now: float) -> str | None:
    """The model that runs next, None if none has work."""
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
    """A model that was idle starts level with the busy ones: idle time earns no credit."""
    level = min((share.virtual_time for share in busy.values() if share.was_busy), default=0.0)
    for name, share in shares.items():
        if name in busy and not share.was_busy:
            share.virtual_time = max(share.virtual_time, level)
        share.was_busy = name in busy
