"""A device that takes time and computes nothing. It needs no torch, so that other servers can be measured on it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

SPIN_SECONDS = 5e-5  # about what a sleep of Linux overshoots


@dataclass(frozen=True, slots=True)
class StepCost:
    """Milliseconds of a step: t0 + t1 * rows."""

    t0_ms: float
    t1_ms: float

    def seconds(self, rows: int) -> float:
        return (self.t0_ms + self.t1_ms * rows) / 1000


def sleep_until(ends: float) -> None:
    """Sleep, and spin at most SPIN_SECONDS: whatever else wants the core must find it free, as beside a GPU."""
    if (rest := ends - time.monotonic() - SPIN_SECONDS) > 0:
        time.sleep(rest)
    while time.monotonic() < ends:
        pass


class SimulatedDevice:
    """One device for all models of a process, used by one thread.

    A step starts at once, or when the one before it ends, as in a CUDA stream: no two steps overlap, and what the
    host does while a step runs is hidden behind it.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep_until: Callable[[float], None] = sleep_until
    ):
        self._clock, self._sleep_until = clock, sleep_until
        self._free = clock()

    def launch(self, seconds: float) -> "SimulatedEvent":
        """Queue a step of so many seconds; returns its end."""
        self._free = max(self._clock(), self._free) + seconds
        return SimulatedEvent(self._free, self._clock, self._sleep_until)


@dataclass(frozen=True, slots=True)
class SimulatedEvent:
    """The end of a step, with the methods of a torch.cuda.Event."""

    ends: float
    clock: Callable[[], float]
    sleep_until: Callable[[float], None]

    def query(self) -> bool:
        """Whether it has come."""
        return self.clock() >= self.ends

    def synchronize(self) -> None:
        """Wait for it."""
        self.sleep_until(self.ends)
