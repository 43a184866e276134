"""Which images of one model go first where not all fit into a step: those of the least slack.

It was settled on a virtual clock against first come first served, earliest target and fewest remaining rows
(docs/experiments.md).
"""

from collections.abc import Collection

from service.engine.request import ImageTask, Request

# Who is late has nothing to lose and goes behind those who are not, but not for ever: from so many idle latencies
# beyond the target on, a part of the rows is theirs, the oldest first.
OVERDUE, OVERDUE_PART = 10.0, 1 / 8


def least_slack(requests: Collection[Request], max_rows: int, places: int, now: float) -> list[ImageTask]:
    """The images of a step where not all fit into it.

    Args:
        requests: in order of arrival.
        places: slots for images that have not begun.
    """
    slacks = {request: request.slack(now) for request in requests}
    overdue = [request for request in slacks if slacks[request] < -OVERDUE]
    ordered = sorted(slacks, key=lambda request: (slacks[request] < 0, max(slacks[request], 0.0)))
    chosen: dict[ImageTask, None] = {}
    places = _choose(overdue, max(2, int(OVERDUE_PART * max_rows)), places, chosen)
    _choose(ordered, max_rows - sum(task.rows for task in chosen), places, chosen)
    return list(chosen)


def _choose(requests: list[Request], room: int, places: int, chosen: dict[ImageTask, None]) -> int:
    """Add what fits into so many rows and free slots; returns the slots that are left."""
    for request in requests:
        for task in request.tasks:
            begins = task.slot is None
            if task.step > task.last_step or task in chosen or task.rows > room or places < begins:
                continue
            chosen[task] = None
            room, places = room - task.rows, places - begins
        if room < 1:
            break
    return places
