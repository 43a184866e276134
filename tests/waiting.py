"""Waiting for an event instead of sleeping for as long as it might take."""

import time
from collections.abc import Callable

PATIENCE = 120.0  # seconds until a test that hangs fails; a busy machine stays far below


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.002)
