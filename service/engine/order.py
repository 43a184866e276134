"""Which images of one model go first where not all fit into a step: those of the least slack.

The rule was chosen on a virtual clock over first come first served, earliest target and fewest remaining rows
(docs/experiments.md).
"""

from bisect import insort
from collections.abc import Iterable
from itertools import count
from math import inf

from service.engine.request import ImageTask, Request

# Late requests go behind those that can still be in time. So that they do not starve, those that are OVERDUE idle
# latencies beyond their target get OVERDUE_PART of the rows, the oldest first.
OVERDUE, OVERDUE_PART = 10.0, 1 / 8

# The order is sorted anew after this time; new requests are inserted meanwhile. A step of a GPU may take 0.1 ms,
# and sorting 256 requests takes 0.5. A new request may wait for 2 ms in any case.
ORDER_SECONDS = 0.002


class LeastSlack:
    """A model's requests by slack, as they were at most ORDER_SECONDS ago."""

    def __init__(self) -> None:
        self._count = count()
        self.forget()

    def forget(self) -> None:
        """Drop the order; for steps in which all images fit."""
        self._made, self._overdue, self._entries = -inf, [], []

    def add(self, request: Request, now: float) -> None:
        """Insert a new request, if there is an order."""
        if self._entries:
            insort(self._entries, self._entry(request.slack(now), request))

    def _sort(self, requests: Iterable[Request], now: float) -> None:
        slacks = [(request.slack(now), request) for request in requests]
        self._made = now
        self._overdue = [request for slack, request in slacks if slack < -OVERDUE]
        self._entries = sorted(self._entry(slack, request) for slack, request in slacks)

    def _entry(self, slack: float, request: Request) -> tuple[bool, float, int, Request]:
        return slack < 0, max(slack, 0.0), next(self._count), request

    def choose(self, requests: Iterable[Request], max_rows: int, places: int, now: float) -> list[ImageTask]:
        """The images of a step where not all fit into it.

        Args:
            requests: in order of arrival.
            places: slots for images that have not begun.
        """
        if now - self._made >= ORDER_SECONDS:
            self._sort(requests, now)
        chosen: dict[ImageTask, None] = {}
        room = max(_least(self._overdue), int(OVERDUE_PART * max_rows))
        places = _choose(self._overdue, room, places, chosen)
        ordered = (entry[-1] for entry in self._entries)
        _choose(ordered, max_rows - sum(task.rows for task in chosen), places, chosen)
        return list(chosen)


def _least(overdue: list[Request]) -> int:
    """Rows that the oldest overdue request needs for a step of any of its images, at least 2."""
    oldest = next((request for request in overdue if request.is_open), None)
    return max([2, *(task.rows for task in oldest.tasks if task.step <= task.last_step)] if oldest else [2])


def _choose(requests: Iterable[Request], room: int, places: int, chosen: dict[ImageTask, None]) -> int:
    """Add what fits into so many rows and free slots; returns the slots that are left."""
    for request in requests:
        if not request.is_open:
            continue
        for task in request.tasks:
            begins = task.slot is None
            if task.step > task.last_step or task in chosen or task.rows > room or places < begins:
                continue
            chosen[task] = None
            room, places = room - task.rows, places - begins
        if room < 1:
            break
    return places
