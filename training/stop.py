"""Ctrl-C and SIGTERM (Slurm, Kubernetes, spot machines) end a run after its step, with a saved state."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """A run that a signal ended; the message says how it goes on."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + number  # what a shell reports for a process that this signal ended


class Signals:
    """received: number of the signal that asked the run to end, or 0."""

    def __init__(self) -> None:
        self.received = 0


@contextmanager
def deferred_signals(signals: Signals | None = None) -> Iterator[Signals]:
    """Record the first SIGINT or SIGTERM only; a second one has its former handler, which ends the run at once."""
    signals, before = signals or Signals(), {}

    def note(number: int, frame: FrameType | None) -> None:
        signals.received = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
        yield signals
    finally:
        restore()
