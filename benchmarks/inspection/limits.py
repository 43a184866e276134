"""Limits that a compiled kernel must keep: spills, access widths, occupancy, tensor-core instructions.

There is no limit on register counts, because they change with every version of Triton. The costs of too many
registers have limits: spills, and the share of the warps that fit a multiprocessor (occupancy).
"""

from collections.abc import Iterator

import torch

from benchmarks.inspection.compiled import Facts
from benchmarks.inspection.served import Case

# Single numbers that a program reads or writes; all other accesses must move 16 bytes a thread.
LOOKUPS = {
    # 5 indices, 8 coefficients, the flag, 3 of place and preview, 3 of span and weight, and the picture's bytes
    "sampler_step_kernel": 5 + 8 + 1 + 3 + 3 + 1,
    "gather_rows_kernel": 3,
    "label_silu_kernel": 1,
    "sinusoidal_embedding_kernel": 1,
}
BIAS_LOADS = 4  # single numbers that a thread of a convolution reads
BIAS_LOADS_100 = 16  # on sm_100, where a thread holds a whole row of the result
MMA_64X64X96 = 96  # mma.sync for 64 x 64 scores over 96 columns and back, 4 warps; padded tiles need 128


def broken_limits(case: Case, architecture: int, found: Facts) -> Iterator[str]:
    """One sentence per broken limit."""
    if found.spills:
        yield f"spills: {found.stack} bytes of stack, {found.local_accesses} local accesses"
    if found.double:
        yield "computes in float64"
    if case.launch.name == "convolution_kernel":
        yield from _convolution(case, architecture, found)
        return
    lookups = LOOKUPS.get(case.launch.name, 0) + 2 * (case.launch.arguments.get("partial") is not None)
    if found.narrow_accesses > lookups:
        yield f"{found.narrow_accesses} accesses below 16 bytes a thread, {lookups} of them are lookups"
    limits = _attention if case.launch.name == "attention_kernel" else _pointwise
    yield from limits(case, architecture, found)


def _pointwise(case: Case, architecture: int, found: Facts) -> Iterator[str]:
    if found.occupancy < 0.25 and architecture != 89:
        yield f"occupancy {found.occupancy:.0%}, 25 % is the least"


def _convolution(case: Case, architecture: int, found: Facts) -> Iterator[str]:
    """Narrow tiles and a bias may be read in less than 16 bytes a thread; images of 3 channels one by one."""
    if found.occupancy < 0.12 and architecture != 89:  # a pipeline hides latency by itself
        yield f"occupancy {found.occupancy:.0%}, 12 % is the least"
    if case.dtype == torch.float32:
        return
    allowed, single = BIAS_LOADS_100 if architecture == 100 else BIAS_LOADS, found.loads.get(2, 0)
    if case.launch.arguments["C"] % case.launch.arguments["STEP"] == 0 and single > allowed:
        yield f"{single} loads of single numbers, {allowed} of a bias"
    if case.launch.arguments["PIXELS"] >= 64 and architecture == 90 and not found.wgmma:
        yield "no warpgroup products"
    if not (found.mma or found.wgmma or found.tcgen05):
        yield "no tensor cores"


def _attention(case: Case, architecture: int, found: Facts) -> Iterator[str]:
    one_pass = case.launch.arguments["KEYS"] >= case.launch.arguments["N"]
    half = case.dtype != torch.float32
    if found.shared > (48 if one_pass and half else 100) * 1024:
        yield f"{found.shared} bytes of shared memory"
    if one_pass != (found.async_copies == 0):
        yield f"{found.async_copies} asynchronous copies, which belong to the loop over keys"
    if not half:
        return
    large = case.launch.arguments["QUERIES"] == 64
    if one_pass and found.occupancy < (0.18 if architecture < 90 else 0.25):
        yield f"occupancy {found.occupancy:.0%}"
    if large and architecture == 90 and not found.wgmma:
        yield "no warpgroup products"
    if large and architecture == 80 and case.launch.arguments["D"] == 96 and found.mma > MMA_64X64X96:
        yield f"{found.mma} products a tile, {MMA_64X64X96} are needed"
    if not (found.mma or found.wgmma or found.tcgen05):
        yield "no tensor cores"
