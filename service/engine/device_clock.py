"""When the device will be free, so how long the next launch may wait, and how long a step really took."""

from collections.abc import Callable

# The next step is launched this long before the device is free. With a shorter lead the device idles, with a longer
# one requests that arrive meanwhile are left out. A late launch raises the lead 50 times as much as another one
# lowers it, so about one step in fifty is late.
LEAST_LEAD, MOST_LEAD = 0.0003, 0.002  # seconds
LATE_RAISES, IN_TIME_LOWERS = 1e-4, 2e-6  # seconds
SEEN_LATE = 0.0003  # seconds between the end of a step and when a waiting host sees it, at most


class DeviceClock:
    """Follows one device by the launches and the ends that its host sees.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._free_at = 0.0  # when the device will have run what is on it
        self._lead = MOST_LEAD
        self._waiting_since: float | None = None  # of a host that waits for more requests
        self._waited = 0.0  # before the step that is under way on the host
        self._overslept = False  # the step that it collects had ended while it waited
        self._last_collected = 0.0

    def spare_seconds(self) -> float:
        """Time that the next launch may wait while the device is busy; negative if it is late."""
        now = self._clock()
        spare = self._free_at - self._lead - now
        if spare > 0 and self._waiting_since is None:
            self._waiting_since = now
        return spare

    def end_wait(self, now: float) -> None:
        self._waited = 0.0 if self._waiting_since is None else now - self._waiting_since
        self._waiting_since = None

    def launched(self, started: float, seconds: float, was_busy: bool) -> None:
        """A step of so many seconds by estimate; was_busy: another one is on the device."""
        if was_busy:
            is_late = self._clock() > self._free_at
            lead = self._lead + (LATE_RAISES if is_late else -IN_TIME_LOWERS)
            self._lead = min(max(lead, LEAST_LEAD), MOST_LEAD)
        self._free_at = max(started, self._free_at) + seconds

    def ask(self, has_ended: bool) -> None:
        """Call before the host waits for the end of a step; has_ended: already, so it will not wait."""
        self._overslept = has_ended and self._waited > 0

    def collected(self, started: float, now: float, rest: float) -> tuple[float, bool]:
        """The oldest step has ended; returns its seconds, and whether they are exact.

        They are not if the step had ended before `ask`, because the host had waited for too long. If they were
        trusted, the host would wait for even longer next time.

        Args:
            started: its launch.
            rest: seconds of what is left on the device, by estimate.
        """
        seconds = now - max(started, self._last_collected)  # the device was busy with the step before
        self._last_collected = now
        self._free_at = min(max(self._free_at, now - SEEN_LATE + rest), now + rest)
        return seconds, not self._overslept
