"""What the autoscalers ask for: PromQL that Prometheus reads, and a target that overload goes beyond."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scheduling import CONFIG, COSTS, Clock, VirtualRunner, arrivals, capacity
from service.engine.core import EngineConfig, EngineCore
from service.errors import ServiceError
from tests.docker.manifests import Manifests
from tests.docker.render import ADAPTER, rendered
from tests.docker.scaling import demands, queries
from tests.skips import needs

ROWS = 32  # of a step of the simulated device
SHARES = {"dit": 0.5, "unet": 0.5}


def mean_backlog(load: float, seconds: float) -> float:
    """Device seconds that wait in one replica which refuses what would be late, on a virtual clock."""
    clock, backlogs, weights = Clock(), [], []
    runners = {model: VirtualRunner(CONFIG, cost, ROWS, clock, clock.advance) for model, cost in COSTS.items()}
    core = EngineCore(dict(runners), EngineConfig(ROWS, shed_load=True), clock=clock)
    for model in runners:
        core.warm_up(model)
    start = clock.now
    pending = arrivals(load * capacity(ROWS, SHARES), seconds, SHARES, seed=0)[::-1]
    while pending:
        while pending and start + pending[-1][0] <= clock.now:
            try:
                core.add(pending.pop()[1])
            except ServiceError:
                continue
        before = clock.now
        backlogs.append(sum(stats.backlog_seconds for stats in core.stats().values()))
        if core.has_work:
            core.step()
        elif pending:
            clock.advance(start + pending[-1][0])
        weights.append(clock.now - before)
    return float(np.average(backlogs, weights=weights))


def test_the_target_lies_between_an_idle_and_an_overloaded_replica() -> None:
    target = float(demands(rendered("hpa"))["targets"][0])
    assert mean_backlog(0.3, seconds=4) < 0.9 * target  # below the tolerance of 10 %: a pod fewer would do
    assert mean_backlog(1.0, seconds=4) > 1.1 * target


def test_both_autoscalers_ask_for_the_same() -> None:
    assert demands(rendered("hpa")) == demands(rendered("keda"))


@needs("prometheus")  # promtool comes with it
@pytest.mark.parametrize("overlay", ["hpa", "keda"])
def test_prometheus_reads_the_queries(overlay: str, tmp_path: Path) -> None:
    found: Manifests = rendered(overlay)
    rules = [{"record": f"query:{n}", "expr": text} for n, text in enumerate(queries(found, ADAPTER))]
    assert len(rules) > 1
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
