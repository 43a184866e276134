"""The kernels of a step and their times by kind, measured by torch's profiler.

python -m benchmarks.gpu.profile_step
"""

import argparse
import re
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.device import DRY, graph_device, graph_runner, loaded, parse, synchronize
from benchmarks.gpu.results import record_failures, record_result
from benchmarks.networks import SHIPPED

STEPS = 2 if DRY else 20
ROWS = (1,) if DRY else (1, 64)
KINDS = {  # patterns of kernel names; a kernel that matches none is "other"
    "convolutions": r"^_convolution|fprop|cudnn.*conv",
    "norms": r"^_(layer_norm|group_norm|statistics|gated)",
    "attention": r"^_attention",
    "products": r"gemm|nvjet|cutlass|cublas|splitK",
    "sums and joins": r"^_deferred_sum",
    "step": r"^_(gather_rows|sampler_step|sinusoid|label)",
}


def kind_of(kernel: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel)), "other")


@torch.inference_mode()
def measure(name: str, rows: int) -> None:
    device = graph_device()
    runner = graph_runner(name, rows, device)
    runner.prepare(rows)
    replay = loaded(runner, rows).replay
    alone = device.seconds(replay)
    activities = [ProfilerActivity.CPU] if DRY else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as seen:
        for _ in range(STEPS):
            replay()
        synchronize()
    spent = defaultdict[str, float](float)
    counts = defaultdict[str, float](float)
    for event in seen.events() or ():
        if DRY or event.device_type.name == "CUDA":
            spent[event.name] += event.time_range.elapsed_us() / STEPS
            counts[event.name] += 1 / STEPS
    kinds = defaultdict[str, float](float)
    for kernel, microseconds in sorted(spent.items(), key=lambda pair: -pair[1]):
        kinds[kind_of(kernel)] += microseconds
        print(f"{microseconds:9.2f} us {counts[kernel]:6.1f} x  {kernel[:110]}")
    record_result(
        "profile",
        model=name,
        rows=rows,
        step_us=round(1e6 * alone, 1),
        kernels=round(sum(counts.values()), 1),
        kernels_us=round(sum(spent.values()), 1),
        kinds_us={kind: round(microseconds, 1) for kind, microseconds in kinds.items()},
    )


def main() -> None:
    parse(argparse.ArgumentParser(description=__doc__))
    for name in SHIPPED[:1] if DRY else SHIPPED:
        for rows in ROWS:
            with record_failures("profile", model=name, rows=rows):
                measure(name, rows)


if __name__ == "__main__":
    main()
