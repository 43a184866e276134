"""The progress of a run, in a log and on a terminal."""

import logging
import math
import sys
from typing import Any

import pytest

from training import meter as module
from training.meter import Meter


def test_a_log_gets_a_line_a_minute(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, *(25.0 * step for step in range(1, 9))])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "training.meter"), Meter(steps=20, done=10, shown=True) as meter:
        for step in range(8):
            meter.update(0.5, held_out=0.6 if step > 3 else math.nan)
    assert [record.getMessage() for record in caplog.records] == [
        "step 13 of 20, loss 0.5000, 3 min left",
        "step 16 of 20, loss 0.5000, held out 0.6000, 2 min left",
    ]


@pytest.mark.parametrize("shown", [True, False])
def test_a_terminal_gets_a_bar(
    shown: bool, caplog: pytest.LogCaptureFixture, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(module, "EVERY", 0.0)
    with caplog.at_level(logging.INFO), Meter(steps=2, done=0, shown=shown) as meter:
        meter.update(0.5)
    assert not caplog.records
    assert ("1/2" in capsys.readouterr().err) is shown
