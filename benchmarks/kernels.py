"""Times each kernel against PyTorch, and whole steps with and without CUDA graphs. Needs a GPU.

    python -m benchmarks.kernels [--rows 64] [--out kernels.json]

The same run measures two ceilings: a large copy for memory, and a large bfloat16 product for tensor cores. Every
operation is timed as a CUDA graph, which excludes the host's time. `torch` is the plain reference, and `compiled`
is torch.compile of it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kernels import (
    DeferredSum,
    attention,
    gated_residual_layer_norm,
    residual_group_norm,
    sampler_step,
    upsample2x,
)
from kernels.attention import attention_reference
from kernels.deferred_sum import upsample2x_reference
from kernels.group_norm import group_norm_reference
from kernels.layer_norm import gated_residual_layer_norm_reference
from kernels.sampler_step import NUM_COEFFICIENTS, NUM_INDICES, sampler_step_reference
from models.checkpoint import ModelConfig, build_model
from service.engine.graphs import CudaDevice, GraphRunner
from service.engine.plan import compile_plan
from service.engine.request import ImageTask, Request
from service.engine.runner import ModelRunner
from service.wire.messages import SamplingParams

REPEATS, CALLS = 20, 10  # medians of 20 replays of a graph of 10 calls
DTYPE = torch.bfloat16


def device_seconds(run: Callable[[], object]) -> float:
    """Seconds of one call on the device, without the time of the host."""
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            run()
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000 / CALLS)
    return statistics.median(times)


def ceilings() -> dict[str, float]:
    """Bytes per second of a copy of 1 GiB (read and written), FLOP/s of a product of 8,192 cubed."""
    a, b = (torch.empty(2**29, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    x, y = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return {
        "bytes_per_second": 2 * a.numel() * 2 / device_seconds(lambda: b.copy_(a)),
        "flops_per_second": 2 * 8192**3 / device_seconds(lambda: x @ y),
    }


def randn(*shape: int) -> Tensor:
    tensor = torch.randn(shape, dtype=DTYPE, device="cuda")
    return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor


def operations(B: int) -> dict[str, tuple[Callable[[], object], Callable[..., object], tuple[Any, ...], int]]:
    """By name: kernel, reference, its arguments, and the bytes of every input and output once."""
    qkv, x, y = randn(B, 64, 12 * 96), randn(B, 64, 768), randn(B, 64, 768)
    gate, scale, shift = randn(B, 6, 768).unbind(1)[:3]
    image, branch, row = randn(B, 64, 32, 32), randn(B, 64, 32, 32), randn(64)
    norm = (4, row, row)
    latent, history = (torch.randn(B, 3, 32, 32, device="cuda") for _ in range(2))
    output, slots = randn(B, 3, 32, 32).contiguous(), torch.arange(B, device="cuda")
    indices = torch.stack([slots, slots, slots, slots, slots], dim=1)
    assert indices.shape[1] == NUM_INDICES
    coefficients = torch.full((B, NUM_COEFFICIENTS), 0.5, device="cuda")
    state = (latent, history, output, indices, coefficients)

    def norm_of_sum(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        stream = DeferredSum(x, y).compute()
        return stream, group_norm_reference(stream, *norm)

    total = DeferredSum(image, branch)
    return {
        "attention 64 x 96": (
            lambda: attention(qkv, 8, 2),
            lambda q: attention_reference(q, 8, 2),
            (qkv,),
            (qkv.nbytes + x.nbytes),
        ),
        "gated residual + LayerNorm": (
            lambda: gated_residual_layer_norm(x, y, gate, scale, shift),
            gated_residual_layer_norm_reference,
            (x, y, gate, scale, shift),
            4 * x.nbytes,
        ),
        "sum + GroupNorm + SiLU": (
            lambda: residual_group_norm(total, *norm),
            norm_of_sum,
            (image, branch),
            4 * image.nbytes,
        ),
        "sum + upsampling": (
            lambda: upsample2x(total),
            lambda x, y: upsample2x_reference(DeferredSum(x, y)),
            (image, branch),
            6 * image.nbytes,
        ),
        "sampler step": (
            lambda: sampler_step(*state),
            sampler_step_reference,
            state,
            4 * latent.nbytes + output.nbytes,
        ),
    }


def compare_kernels(B: int, peaks: dict[str, float]) -> list[dict[str, Any]]:
    results = []
    for name, (kernel, reference, arguments, least) in operations(B).items():
        seconds = {"triton": device_seconds(kernel)}
        if name != "sampler step":  # its reference looks at the data on the host, which no graph can capture
            seconds["torch"] = device_seconds(lambda r=reference, a=arguments: r(*a))
            compiled = torch.compile(reference, dynamic=False)
            seconds["compiled"] = device_seconds(lambda c=compiled, a=arguments: c(*a))
        bandwidth = least / seconds["triton"]
        share = bandwidth / peaks["bytes_per_second"]
        results.append({"operation": name, **seconds, "bytes_per_second": bandwidth, "of_copy": share})
    return results


def tasks_for(config: ModelConfig, rows: int) -> list[ImageTask]:
    params = SamplingParams("", 0, 10, "ddpm", 1.0, (0.0, 1.0), seeds=tuple(range(rows)))
    tasks = Request("", params, compile_plan(config, params)).tasks
    for slot, task in enumerate(tasks):
        task.slot, task.step = slot, 5
    return tasks


def step_seconds(runner: ModelRunner, rows: int) -> float:
    """Mean wall time of steps that are launched one after the other, as in the engine."""
    tasks = tasks_for(runner.config, rows)
    for _ in range(5):
        runner.execute(tasks)
    started = time.perf_counter()
    launched = [runner.launch(tasks) for _ in range(REPEATS)]
    launched[-1].collect()
    return (time.perf_counter() - started) / REPEATS


def compare_steps(rows: int) -> list[dict[str, Any]]:
    results = []
    for architecture in ("dit", "unet"):
        config, device = ModelConfig(architecture, {}), torch.device("cuda")
        model: nn.Module = build_model(config).eval().requires_grad_(False)
        plain = ModelRunner(model, config, device, DTYPE, rows)
        graphs = GraphRunner(model, config, device, DTYPE, rows, graph_device=CudaDevice(device))
        for count in sorted({1, 8, rows}):
            graphs.prepare(count)
            seconds = {"eager": step_seconds(plain, count), "graph": step_seconds(graphs, count)}
            results.append({"model": architecture, "rows": count, **seconds})
    return results


def report(rows: int, peaks: dict[str, float], kernels: list[dict[str, Any]], steps: list[dict[str, Any]]) -> None:
    copy, product = peaks["bytes_per_second"] / 1e9, peaks["flops_per_second"] / 1e12
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {rows} rows")
    print(f"copy {copy:.0f} GB/s, product {product:.0f} TFLOP/s\n")
    print("| operation | Triton us | over torch | over torch.compile | GB/s | of copy |\n|---|---|---|---|---|---|")
    for r in kernels:
        ratios = [f"{r[name] / r['triton']:.2f}x" if name in r else "-" for name in ("torch", "compiled")]
        rate = f"{r['bytes_per_second'] / 1e9:.0f} | {r['of_copy']:.0%}"
        print(f"| {r['operation']} | {1e6 * r['triton']:.1f} | {' | '.join(ratios)} | {rate} |")
    print("\n| step of | rows | eager ms | graph ms | graph over eager |\n|---|---|---|---|---|")
    for r in steps:
        times = f"{1e3 * r['eager']:.3f} | {1e3 * r['graph']:.3f} | {r['eager'] / r['graph']:.2f}x"
        print(f"| {r['model']} | {r['rows']} | {times} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.kernels times kernels on a GPU, and torch finds no CUDA device: nothing was measured")
        return 0
    torch.manual_seed(0)
    with torch.inference_mode():
        peaks = ceilings()
        kernels, steps = compare_kernels(arguments.rows, peaks), compare_steps(arguments.rows)
    report(arguments.rows, peaks, kernels, steps)
    if arguments.out:
        facts = {"device": torch.cuda.get_device_name(), "ceilings": peaks, "kernels": kernels, "steps": steps}
        arguments.out.write_text(json.dumps(facts, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
