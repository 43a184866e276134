"""Images a second of the engine by itself, without HTTP and PNG, and the time of its host for a step.

python -m benchmarks.gpu.engine
"""

import argparse
import statistics
import time
from itertools import count

import torch

from benchmarks.gpu.device import DRY, graph_device, graph_pool_mib, graph_runner, loaded, parse, tasks_for
from benchmarks.gpu.results import record_failures, record_result
from service.engine.core import EngineConfig, EngineCore
from service.engine.graphs import GraphRunner
from service.engine.plan import compile_plan
from service.engine.request import Request
from service.wire.messages import SamplingParams

ROWS = 2 if DRY else 128
CONCURRENCY = (1, 2) if DRY else (1, 8, 64, 128)
SECONDS = 0.2 if DRY else 1.5
LAUNCHES = 3 if DRY else 60
GROUPS = (["dit"], ["dit", "unet"], ["unet"])[: 2 if DRY else 3]


def request(core: EngineCore, model: str, number: int) -> Request:
    """Of 7 to 13 steps, 10 on average: images of equal steps would end, and be pictured, in one step of ten."""
    params = SamplingParams(model, number % 10, 7 + 3 * number % 7, "dpmpp_2m", 1.0, (0.0, 1.0), (number,))
    return Request(str(number), params, compile_plan(core.runners[model].config, params))


def throughput(core: EngineCore, models: list[str], images: int) -> dict[str, float]:
    """Keep `images` images in the engine for SECONDS: each that ends is replaced by another one of its model.

    The requests are made before, because in the service the HTTP workers make most of them.
    """
    numbers = count()
    each = range((10 if DRY else 1_000 + 500 * images) // len(models))
    ready = {model: [request(core, model, next(numbers)) for _ in each] for model in models}
    for number in range(images):
        core.add(ready[models[number % len(models)]].pop())
    done = steps = rows = 0
    cpu, began = time.thread_time(), time.monotonic()
    while time.monotonic() - began < SECONDS:
        progress = core.step()
        for ended in progress.ended:
            model = ended.params.model
            core.add(ready[model].pop() if ready[model] else request(core, model, next(numbers)))
        done += len(progress.ended)
        if progress.stats:
            steps, rows = steps + 1, rows + progress.stats.num_rows
    wall, cpu = time.monotonic() - began, time.thread_time() - cpu
    for share in core.shares.values():
        for request_id in list(share.scheduler.requests):
            core.abort(request_id)
    while core.has_work:
        core.step()
    return {
        "images_per_s": round(done / wall),
        "us_a_step": round(1e6 * wall / max(steps, 1), 1),
        "host_cpu_us_a_step": round(1e6 * cpu / max(steps, 1), 1),
        "rows_a_step": round(rows / max(steps, 1), 1),
    }


def device_us(runner: GraphRunner, images: int) -> float:
    """Microseconds on the device of a step of so many images."""
    replay = loaded(runner, runner.padded(min(ROWS, images))).replay
    return 1e6 * runner._graph_device.seconds(replay)


def launch_us(runner: GraphRunner, images: int, step: int) -> float:
    """The host's median microseconds for a launch of so many images that take the given one of ten steps."""
    tasks, seconds = tasks_for(runner.config, images, step), []
    for _ in range(LAUNCHES):
        began = time.perf_counter()
        launched = runner.launch(tasks)
        seconds.append(time.perf_counter() - began)
        launched.collect()
    return round(1e6 * statistics.median(seconds), 1)


def measure(models: list[str]) -> None:
    device = graph_device()
    runners = {name: graph_runner(name, ROWS, device) for name in models}
    core = EngineCore(dict(runners), EngineConfig(ROWS, 10**6, 10**9))
    for name in models:
        core.warm_up(name)
    reserved = 0 if DRY else round(torch.cuda.max_memory_reserved() / 2**20)
    record_result("memory of the engine", models=models, reserved_MiB=reserved, graphs_MiB=graph_pool_mib(device))
    for images in CONCURRENCY:
        facts = throughput(core, models, images)
        if images >= len(models):
            each = -(-images // len(models))
            busy = statistics.fmean(device_us(runner, each) for runner in runners.values())
            facts["device_busy"] = round(busy / facts["us_a_step"], 3)
        record_result("engine alone", models=models, images=images, **facts)
        if len(models) == 1:
            # after step 5 no image leaves the device, after step 9 every image does
            none_leave, all_leave = (launch_us(runners[models[0]], images, step) for step in (5, 9))
            facts = {"model": models[0], "nobody_shown": none_leave, "all_shown": all_leave}
            record_result("host us of GraphRunner.launch", images=images, **facts)


def main() -> None:
    parse(argparse.ArgumentParser(description=__doc__))
    for models in GROUPS:
        with record_failures("engine alone", models=models), torch.inference_mode():
            measure(models)


if __name__ == "__main__":
    main()
