"""Times each kernel beside PyTorch, at the shapes of both networks. Needs a GPU.

    python -m benchmarks.kernels [--rows 1 64 256] [--compiled]

Every operation is timed in a CUDA graph, which leaves out the host. Its calls take turns at several copies of the
inputs, because 64 rows of one copy would stay in the L2 cache (50 MB), where a step would not find them. The run
also measures the bandwidth of a large copy, as the ceiling. PyTorch runs SDPA, a convolution of cuDNN, or the plain
operations.
"""

import argparse
import importlib
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import gpu_report
from benchmarks.gpu.device import DEVICE, DRY, DTYPE, ceilings, graph_device, kernel_seconds, parse
from benchmarks.gpu.results import record_failures, record_result
from kernels import (
    DeferredSum,
    attention,
    concat_skip,
    convolution,
    convolve,
    gated_residual_layer_norm,
    group_norm,
    linear_gelu,
    residual_group_norm,
    sampler_step,
)
from kernels.backend import triton
from kernels.gather_rows import gather_rows
from kernels.linear_gelu import linear_gelu_reference
from kernels.sampler_step import NUM_COEFFICIENTS, NUM_INDICES
from service.engine.graphs import CudaDevice
from service.engine.runner import lay_out

norms = importlib.import_module("kernels.group_norm")  # kernels.group_norm is the function
NORMS = ((64, 32), (192, 32), (128, 16), (256, 8), (1024, 4))  # channels, pixels of a side
CONVOLUTIONS = (  # channels in, pixels of a side, channels out
    (3, 32, 32), (32, 32, 32), (96, 32, 32), (64, 32, 64), (64, 16, 64), (192, 16, 64),
    (128, 8, 128), (384, 8, 128), (256, 8, 256), (256, 4, 256), (512, 4, 256),
)  # fmt: skip
COPIES = 1 if DRY else 16  # of the inputs: 75 MB of the smallest, attention of 64 rows
NOISE = 6  # column of the noise's factor s among a row's coefficients


class Case(NamedTuple):
    """An operation at one number of rows."""

    kernel: str
    ours: Callable[[], object]
    theirs: Callable[[], object] | None = None
    bytes: int | None = None  # every input and output once, of an operation that the bandwidth limits


def randn(*shape: int) -> Tensor:
    tensor = torch.randn(shape, dtype=DTYPE, device=DEVICE)
    return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor


def cases(rows: int) -> Iterator[Case]:
    for D in (48, 96):
        yield attention_case(rows, D)
    for D in (384, 768):
        yield layer_norm_case(rows, D)
    for C, side in NORMS:
        yield group_norm_case(rows, C, side)
    for C, side, N in CONVOLUTIONS:
        yield convolution_case(rows, C, side, N)
    for D in (384, 768):
        x, weight, bias = randn(rows, 64, D), randn(4 * D, D), randn(4 * D)
        arguments = (x, weight, bias)
        name = f"product + GELU {D} to {4 * D}"
        yield Case(name, lambda a=arguments: linear_gelu(*a), lambda a=arguments: linear_gelu_reference(*a))
    x, y, skip = randn(rows, 64, 32, 32), randn(rows, 64, 32, 32), randn(rows, 128, 32, 32)
    moved, total = 3 * x.nbytes + 2 * skip.nbytes, DeferredSum(x, y)
    joined = lambda: concat_skip(total, skip)
    yield Case("join beside a skip 64 + 128", joined, lambda: torch.cat([x, skip], 1), moved)
    yield from step_cases(rows)


def attention_case(rows: int, D: int) -> Case:
    qkv = randn(rows, 64, 12 * D)

    def sdpa() -> Tensor:
        q, k, v = (t.view(rows, 64, -1, D).transpose(1, 2) for t in qkv.split([8 * D, 2 * D, 2 * D], -1))
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return out.transpose(1, 2).reshape(rows, 64, 8 * D)

    moved = qkv.nbytes + rows * 64 * 8 * D * DTYPE.itemsize
    return Case(f"attention 64 x {D}", lambda: attention(qkv, 8, 2), sdpa, moved)


def layer_norm_case(rows: int, D: int) -> Case:
    x, y = randn(rows, 64, D), randn(rows, 64, D)
    gate, scale, shift = randn(rows, 14, D).unbind(1)[:3]

    def plain() -> Tensor:
        normed = F.layer_norm(x + gate[:, None] * y, (D,))
        return normed * (1 + scale[:, None]) + shift[:, None]

    ours = lambda: gated_residual_layer_norm(x, y, gate, scale, shift)
    return Case(f"gated residual + norm {D}", ours, plain, 4 * x.nbytes)


def group_norm_case(rows: int, C: int, side: int) -> Case:
    """PyTorch gets the finished sum, in the layout that it prefers."""
    x, y, weight, groups = randn(rows, C, side, side), randn(rows, C, side, side), randn(C), C // 16
    total, usual = DeferredSum(x, y), x.contiguous()
    ours = lambda: residual_group_norm(total, groups, weight, weight)
    theirs = lambda: F.silu(F.group_norm(usual, groups, weight, weight))
    return Case(f"sum + GroupNorm + SiLU {C} x {side} x {side}", ours, theirs, 4 * x.nbytes)


def convolution_case(rows: int, C: int, side: int, N: int) -> Case:
    conv = nn.Conv2d(C, N, 3, padding=1, device=DEVICE, dtype=DTYPE).requires_grad_(False)
    lay_out(conv, DEVICE)
    x = randn(rows, C, side, side)
    return Case(f"convolution {C} x {side} x {side} to {N}", lambda: convolve(conv, x), lambda: conv(x))


def step_cases(rows: int) -> Iterator[Case]:
    latent, history = (torch.randn(rows + 1, 3, 32, 32, device=DEVICE) for _ in range(2))
    output, slots = randn(rows, 3, 32, 32).contiguous(), torch.arange(rows, device=DEVICE)
    indices = torch.stack([slots] * NUM_INDICES, 1)
    moved = 4 * latent[1:].nbytes + output.nbytes
    for noise in (0.0, 1.0):
        numbers = torch.full((rows, NUM_COEFFICIENTS), 0.5, device=DEVICE)
        numbers[:, NOISE] = noise
        state = (latent, history, output, indices, numbers)
        yield Case(f"sampler step, noise {noise:g}", lambda s=state: sampler_step(*s), None, moved)
    block = torch.stack([slots, slots, torch.zeros_like(slots)], 1)
    yield Case("gather rows", lambda: gather_rows(latent, block, DTYPE))


def pairs(rows: int) -> Iterator[Case]:
    """A convolution and the norm behind it, which adds up what the convolution leaves in parts."""
    for C, side in ((64, 32), (128, 8), (256, 4)):
        conv = nn.Conv2d(C, C, 3, padding=1, device=DEVICE, dtype=DTYPE).requires_grad_(False)
        lay_out(conv, DEVICE)
        x, weight, groups = randn(rows, C, side, side), randn(C), C // 16
        ours = lambda c=conv, a=(x, groups, weight): group_norm(convolve(c, a[0]), a[1], a[2], a[2])
        theirs = lambda c=conv, a=(x, groups, weight): F.silu(F.group_norm(c(a[0]), a[1], a[2], a[2]))
        yield Case(f"convolution + norm {C} x {side} x {side}", ours, theirs)


def rivals(rows: int) -> Iterator[Case]:
    """Other tiles of a kernel beside its present ones. No GPU has timed them; on sm_90 they compile without spills.

    The norm with a residual would spill with 16 warps of 64 registers, so its rival has none.
    """
    if triton.cdiv(rows * 64, 128) * 2 >= convolution.PROGRAMS:  # else too few programs of 128 x 128
        case = convolution_case(rows, 256, 8, 256)
        tiles = convolution.Tiles(128, 128, 64, 1, num_warps=8, num_stages=3)
        other = with_values(case.ours, convolution, tiles=lambda *_: tiles)
        yield Case(f"{case.kernel}: 128 x 128 tiles", other, case.ours)
    x, weight, film = randn(rows, 64, 32, 32), randn(64), randn(rows, 128)  # groups of 16,384 elements
    norm = lambda: group_norm(x, 4, weight, weight, film[:, :64], film[:, 64:])
    other = with_values(norm, norms, MAX_REGISTERS=64, _warps=lambda *_: 16)
    yield Case("GroupNorm + FiLM 64 x 32 x 32: 16 warps", other, norm)


def with_values(run: Callable[[], object], module: ModuleType, **values: Any) -> Callable[[], object]:
    """run, with other values of names of a module."""

    def changed() -> object:
        with patch.multiple(module, **values):
            return run()

    return changed


def measure(
    device: CudaDevice, copies: Sequence[Case], rows: int, compiled: bool, part: str = "kernel times"
) -> dict[str, Any]:
    case = copies[0]
    seconds = {"ours_us": kernel_seconds(device, *(copy.ours for copy in copies))}
    if theirs := [copy.theirs for copy in copies if copy.theirs]:
        seconds["torch_us"] = kernel_seconds(device, *theirs)
        if compiled:
            runs = [torch.compile(run, dynamic=False) for run in theirs]
            seconds["compiled_us"] = kernel_seconds(device, *runs)
    facts = {name: round(1e6 * time, 2) for name, time in seconds.items()}
    if case.bytes:
        facts["GB_s"] = round(case.bytes / seconds["ours_us"] / 1e9)
    return record_result(part, kernel=case.kernel, rows=rows, **facts)


@torch.inference_mode()
def measure_all(rows: list[int], compiled: bool = False) -> list[dict[str, Any]]:
    device = graph_device()
    found = [record_result("kernel times", ceiling_GB_s=round(ceilings()["bytes"] / 1e9))]
    for count in rows:
        for copies in zip(*(cases(count) for _ in range(COPIES)), strict=True):
            with record_failures("kernel times", kernel=copies[0].kernel, rows=count):
                found.append(measure(device, copies, count, compiled))
    for part, others in (("kernel pairs", pairs), ("kernel rivals", rivals)):  # in rivals, torch_us is the present
        for count in rows:
            for copies in zip(*(others(count) for _ in range(COPIES)), strict=True):
                with record_failures(part, kernel=copies[0].kernel, rows=count):
                    measure(device, copies, count, False, part)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 64, 256])
    parser.add_argument(
        "--compiled", action="store_true", help="also PyTorch's operations compiled by torch.compile"
    )
    given = parse(parser)
    print(gpu_report.kernels(measure_all(given.rows, given.compiled)))


if __name__ == "__main__":
    main()
