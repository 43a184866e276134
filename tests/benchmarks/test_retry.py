"""When a request that was refused would have been accepted, against the time that the refusal named."""

from typing import Any

import numpy as np
import pytest

from benchmarks.serving import ideal
from benchmarks.serving.workloads import workloads
from service.engine.admission import OverloadGuard
from service.engine.core import EngineCore, Progress
from service.engine.request import Request
from service.errors import Overloaded


class Waits:
    """Asks for every refused request again after each step; what else comes is not changed by that."""

    def __init__(self) -> None:
        self.open: list[tuple[float, float, Request]] = []  # when, what it was told, which
        self.known: list[tuple[float, float]] = []  # seconds that were named, and those that it would have taken

    def add(self, core: EngineCore, request: Request, add: Any) -> None:
        try:
            add(core, request)
        except Overloaded as error:
            self.open.append((core.clock(), error.retry_after or 0.0, request))
            raise

    def look(self, core: EngineCore) -> None:
        now, guard = core.clock(), core._guard
        for item in list(self.open):
            probe = OverloadGuard()
            vars(probe).update(vars(guard), _sums=dict(guard._sums))
            if not probe.refuses(item[2], core.shares, now):
                self.open.remove(item)
                self.known.append((item[1], now - item[0]))


def test_a_refusal_names_about_the_time_after_which_the_request_would_be_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits, add, step = Waits(), EngineCore.add, EngineCore.step

    def stepping(core: EngineCore) -> Progress:
        progress = step(core)
        waits.look(core)
        return progress

    monkeypatch.setattr(EngineCore, "add", lambda core, request: waits.add(core, request, add))
    monkeypatch.setattr(EngineCore, "step", stepping)
    ideal.simulate(workloads(0.3)["W2-90"])
    named, true = np.array(waits.known).T
    assert len(named) > 100
    assert len(waits.open) < 10
    assert 0.5 < np.median(true) / np.median(named) < 1.5
    assert (abs(true - named) <= np.maximum(0.2 * true, 0.02)).mean() > 0.7
