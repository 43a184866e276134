"""Compares batching without a compatibility key with three other strategies, in the real engine with a real model.

All four serve the same trace of requests, which differ in steps, sampler and guidance, on the same runner:

    sequential   one request after another
    request      requests of equal steps, sampler and guidance form a batch that runs to its end
    keyed step   every step forms a new batch among images of equal sampler and guidance
    no key       every step forms a new batch among all images: this project

First all requests are there at once, which gives the throughput. Then they arrive at random (Poisson), at --load
times the throughput of "no key", which gives the latencies. Run it on a machine without other load.

    python -m benchmarks.batching --checkpoint checkpoints/dit
"""

import argparse
import json
import time
from collections.abc import Callable, Hashable
from itertools import accumulate
from pathlib import Path

import numpy as np

from models.checkpoint import load_checkpoint
from models.samplers import PLAIN
from service.engine.core import EngineConfig, EngineCore
from service.engine.plan import compile_plan
from service.engine.request import ImageTask, Request
from service.engine.runner import ModelRunner
from service.engine.scheduler import Scheduler, SchedulerOutput
from service.registry import choose_device, choose_dtype
from service.wire.messages import SamplingParams

Key = Callable[[ImageTask], Hashable]


def request_key(task: ImageTask) -> Hashable:
    """What images must share to run as one batch from the first step to the last."""
    params = task.request.params
    return params.sampler, params.guidance_scale, params.num_steps


def step_key(task: ImageTask) -> Hashable:
    """What images must share to take part in the same step."""
    params = task.request.params
    return params.sampler, params.guidance_scale


class KeyedScheduler(Scheduler):
    """The project's scheduler with a compatibility key: a step takes only images with the key of the oldest one.

    whole: a batch takes no more images once it has started. limit: the most images of a batch.
    """

    key: Key = staticmethod(lambda task: None)
    whole = False
    limit = 10**9

    def schedule(self, now: float) -> SchedulerOutput:
        everyone, self.waiting = list(self.waiting), type(self.waiting)()
        oldest = (self.running or everyone)[0]
        joining = not (self.whole and self.running)
        fitting = [t for t in everyone if joining and self.key(t) == self.key(oldest)]
        self.waiting.extend(fitting[: max(0, self.limit - len(self.running))])
        paused = [t for t in self.running if self.key(t) != self.key(oldest)]
        self.running = [t for t in self.running if t not in paused]
        output = super().schedule(now)
        self.running = sorted(self.running + paused, key=lambda t: int(t.request.request_id))
        started = set(self.running)
        self.waiting = type(self.waiting)(t for t in everyone if t not in started)
        return output

    def select(self, now: float) -> list[ImageTask]:
        """First come, first served."""
        queue = [*self.running, *self.waiting]
        rows = accumulate(task.rows for task in queue)
        return [task for task, total in zip(queue, rows, strict=True) if total <= self.max_rows]


class Sequential(KeyedScheduler):
    whole, limit = True, 1


class RequestLevel(KeyedScheduler):
    key, whole = staticmethod(request_key), True


class KeyedStep(KeyedScheduler):
    key = staticmethod(step_key)


STRATEGIES: dict[str, type[Scheduler]] = {
    "sequential": Sequential,
    "request": RequestLevel,
    "keyed step": KeyedStep,
    "no key": Scheduler,
}


def make_trace(runner: ModelRunner, count: int, seed: int) -> list[Request]:
    """Random requests that differ in class, steps, sampler, guidance and seed."""
    rng = np.random.default_rng(seed)
    trace = []
    for i in range(count):
        params = SamplingParams(
            model="model",
            class_label=int(rng.integers(runner.config.num_classes)),
            num_steps=int(rng.choice([5, 10, 20, 40], p=[0.3, 0.4, 0.2, 0.1])),
            sampler=str(rng.choice(PLAIN)),
            guidance_scale=float(rng.choice([1.0, 1.5, 2.0, 3.0])),
            guidance_interval=(0.0, 1.0),
            seeds=(int(rng.integers(2**53)),),
        )
        trace.append(Request(str(i), params, compile_plan(runner.config, params)))
    return trace


def replay(
    runner: ModelRunner, kind: type[Scheduler], trace: list[Request], arrivals: np.ndarray, max_rows: int
) -> tuple[float, list[float], float]:
    """Run a trace.

    Args:
        kind: the class of the scheduler.
        arrivals: seconds after the start, [requests].

    Returns:
        The seconds of the whole trace, the latency of each request in seconds, and the mean rows of a forward.
    """
    core = EngineCore({"model": runner}, EngineConfig(max_rows, len(trace) + 1, 10**9))
    core.warm_up("model")
    core.shares["model"].scheduler = kind(max_rows, len(trace) + 1, 10**9)
    started, pending, latencies, rows = time.monotonic(), 0, [], []
    while len(latencies) < len(trace):
        now = time.monotonic() - started
        while pending < len(trace) and arrivals[pending] <= now:
            core.add(trace[pending])
            pending += 1
        if not core.has_work:
            time.sleep(max(0.0, arrivals[pending] - now))
            continue
        progress = core.step()
        ended, stats = progress.ended, progress.stats
        rows += [stats.num_rows] if stats else []
        done = time.monotonic() - started
        latencies += [done - arrivals[int(request.request_id)] for request in ended]
    return time.monotonic() - started, latencies, float(np.mean(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/dit"))
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rows", type=int, default=8, help="row cap, the same for all")
    parser.add_argument("--load", type=float, default=0.7, help="arrival rate over the throughput of 'no key'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()

    model, config = load_checkpoint(arguments.checkpoint)
    device = choose_device("auto")
    runner = ModelRunner(model, config, device, choose_dtype("auto", device), arguments.rows)
    at_once = np.zeros(arguments.requests)
    throughput, rows = {}, {}
    for name, kind in STRATEGIES.items():
        trace = make_trace(runner, arguments.requests, arguments.seed)
        seconds, _, rows[name] = replay(runner, kind, trace, at_once, arguments.rows)
        throughput[name] = arguments.requests / seconds
    rate = arguments.load * throughput["no key"]
    arrivals = np.random.default_rng(arguments.seed).exponential(1 / rate, arguments.requests).cumsum()
    results = {}
    for name, kind in STRATEGIES.items():
        trace = make_trace(runner, arguments.requests, arguments.seed)
        _, latencies, _ = replay(runner, kind, trace, arrivals, arguments.rows)
        results[name] = {
            "requests_per_second": throughput[name],
            "throughput_ratio": throughput[name] / throughput["sequential"],
            "rows_per_forward": rows[name],
            "latency_mean_ms": 1000 * float(np.mean(latencies)),
            "latency_p95_ms": 1000 * float(np.quantile(latencies, 0.95)),
        }
    report(arguments, runner, rate, results)


def report(arguments: argparse.Namespace, runner: ModelRunner, rate: float, results: dict) -> None:
    about = {"checkpoint": arguments.checkpoint.name, **runner.describe(), "row cap": arguments.rows}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"{arguments.requests} requests; latencies at {rate:.2f} requests/s ({arguments.load:.0%} of no key)\n")
    print("| batching | requests/s | vs sequential | rows a forward | mean latency | p95 latency |")
    print("|---|---|---|---|---|---|")
    for name, r in results.items():
        print(
            f"| {name} | {r['requests_per_second']:.2f} | {r['throughput_ratio']:.2f}x "
            f"| {r['rows_per_forward']:.1f} "
            f"| {r['latency_mean_ms']:.0f} ms | {r['latency_p95_ms']:.0f} ms |"
        )
    if arguments.out:
        facts = {"about": about, "rate": rate, "results": results}
        arguments.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
