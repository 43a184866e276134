"""Prometheus' own tool on our exposition, and what the histograms say beside what clients saw."""

import math
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from service.local import create_app
from service.observe.scoreboard import SECONDS
from tests.service.conftest import Running, running, tiny_settings
from tests.service.networks import simulated
from tests.skips import needs
from tests.waiting import wait_until


@needs("prometheus")  # promtool comes with it
def test_promtool_accepts_the_metrics(server: Running) -> None:
    server.client.post("/generate?model=dit&class=0&steps=2")
    text = server.client.get("/metrics").text
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def quantile(server: Running, q: float, name: str = "diffusion_request_duration_seconds") -> tuple[float, float]:
    """The bucket that holds it, as (lower, upper) bound."""
    counts = [server.metric(f"{name}_bucket", le=str(bound)) for bound in SECONDS]
    rank = math.ceil(q * server.metric(f"{name}_count"))
    index = next(i for i, count in enumerate(counts) if count >= rank)
    return (SECONDS[index - 1] if index else 0.0), SECONDS[index]


def test_latencies_lie_between_what_the_device_takes_and_what_clients_see(checkpoints: Path) -> None:
    models = {"dit": simulated(checkpoints / "dit", 20)}
    with running(create_app(tiny_settings(checkpoints, models=models, max_rows=64))) as live:

        def ask(steps: int) -> float:
            query = f"/generate?model=dit&class=0&guidance=1&steps={steps}"
            started = time.monotonic()
            assert live.client.post(query).status_code == 200
            return time.monotonic() - started

        steps = [5 + number % 20 for number in range(100)]
        with ThreadPoolExecutor(8) as pool:
            seen = sorted(pool.map(ask, steps))
        device = sorted(0.02 * count for count in steps)
        for q in (0.5, 0.99):
            rank = math.ceil(q * len(seen)) - 1
            lower, upper = quantile(live, q)
            assert device[rank] <= upper
            assert lower < seen[rank]
        total = live.metric("diffusion_request_duration_seconds_sum")
        queue, denoise = (live.metric(f"diffusion_request_{part}_seconds_sum") for part in ("queue", "denoise"))
        assert sum(device) <= denoise
        assert denoise + queue < total < sum(seen)


def test_all_gauges_are_zero_when_nothing_runs(server: Running) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = [f"/generate?model={model}&class=0&steps=3" for model in ("dit", "unet") * 4]
        assert {answer.status_code for answer in pool.map(server.client.post, paths)} == {200}
    for gauge in ("queue_depth", "running_slots", "backlog_seconds"):
        wait_until(lambda gauge=gauge: server.metric(f"diffusion_{gauge}") == 0)
