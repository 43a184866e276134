"""Computes the least time that a step can take on an H100 from the real modules. Nothing is timed.

python -m benchmarks.roofline > docs/roofline.md
"""

from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.launches import count_step, image_shape, networks
from training.info import flops_by_part

ROWS = (1, 8, 32, 64, 128)
# NVIDIA H100 SXM data sheet: dense bfloat16 products, memory bandwidth.
FLOPS_PER_SECOND, BYTES_PER_SECOND = 989.4e12, 3.35e12
# Assumptions: what one launch costs the host when Python starts it, and the device when a CUDA graph replays it.
PYTHON_LAUNCH, GRAPH_LAUNCH = 6e-6, 2e-6


@dataclass(frozen=True)
class Floor:
    """Lower bounds of one model at one number of rows. Times are in seconds."""

    rows: int
    flops: float
    least_bytes: int  # weights once, latents and history in and out
    moved_bytes: int  # every operand of every launch, as if there were no cache
    graph_launches: int
    python_launches: int

    @property
    def compute(self) -> float:
        return self.flops / FLOPS_PER_SECOND

    @property
    def memory(self) -> float:
        return self.moved_bytes / BYTES_PER_SECOND

    @property
    def device(self) -> float:
        """Assumes that products and memory overlap, and that caches hold everything that is used twice."""
        return max(self.compute, self.least_bytes / BYTES_PER_SECOND)

    @property
    def replayed(self) -> float:
        return max(self.device, self.graph_launches * GRAPH_LAUNCH)

    @property
    def from_python(self) -> float:
        return max(self.device, self.python_launches * PYTHON_LAUNCH)


def floors(model: nn.Module) -> list[Floor]:
    """The floors at ROWS, with weights in bfloat16; model: float32 on the CPU, which is moved to "meta"."""
    shape = image_shape(model)
    launches = {fused: sum(count_step(model, 2, fused).launches.values()) for fused in (False, True)}
    model = model.to(torch.device("meta"), torch.bfloat16)
    flops = flops_by_part(model, shape).total()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    latents = 4 * 4 * shape[0] * shape[1] * shape[2]  # x and history in float32, read and written
    return [
        Floor(
            rows,
            rows * flops,
            weights + rows * latents,
            count_step(model, rows, fused=True, device="meta").bytes,
            launches[True],
            launches[False],
        )
        for rows in ROWS
    ]


def crossing(rows: list[Floor], launches: float) -> str:
    """The number of rows at which the device takes as long as the launches (seconds), by interpolation."""
    for a, b in zip(rows, rows[1:], strict=False):
        if a.device <= launches < b.device:
            return f"{a.rows + (b.rows - a.rows) * (launches - a.device) / (b.device - a.device):.0f}"
    return f"less than {rows[0].rows}" if launches < rows[0].device else f"more than {rows[-1].rows}"


def section(name: str, model: nn.Module) -> str:
    rows = floors(model)
    lines = [
        f"## {name}\n",
        "| rows | GFLOP | least MB | moved MB | products | memory, no cache | replayed as a graph | from Python |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for f in rows:
        times = " | ".join(f"{1e6 * t:,.0f} us" for t in (f.compute, f.memory, f.replayed, f.from_python))
        sizes = f"{f.flops / 1e9:,.1f} | {f.least_bytes / 1e6:,.1f} | {f.moved_bytes / 1e6:,.1f}"
        lines.append(f"| {f.rows} | {sizes} | {times} |")
    first = rows[0]
    graph, python = first.graph_launches * GRAPH_LAUNCH, first.python_launches * PYTHON_LAUNCH
    in_graph, from_python = crossing(rows, graph), crossing(rows, python)
    lines.append(
        f"\nThere are {first.graph_launches} launches fused in a graph ({1e6 * graph:.0f} us), or "
        f"{first.python_launches} plain ones from Python ({1e6 * python:,.0f} us).\nThe device takes as long as "
        f"the launches at {in_graph} rows in a graph, and at {from_python} rows from Python.\n"
    )
    return "\n".join(lines)


INTRODUCTION = f"""# Roofline

This page is arithmetic; [gpu.md](gpu.md) has times that were measured. It computes lower bounds of step times from
the operations of the modules and the data sheet of one H100 SXM: {FLOPS_PER_SECOND / 1e12:.0f} TFLOP/s in bfloat16,
{BYTES_PER_SECOND / 1e12:.2f} TB/s. It assumes that a launch from Python costs {1e6 * PYTHON_LAUNCH:.0f} us on the
host, and a launch in a CUDA graph {1e6 * GRAPH_LAUNCH:.0f} us on the device. Real products reach 50 to 70 % of the
data sheet, and small convolutions less. So real steps are slower than these bounds.

A row is one model evaluation: an image with guidance takes two rows a step. *Least MB* reads every weight once, and
reads and writes latents and history once. *Moved MB* adds up the operands of all launches, as if there were no
cache. The last two columns are bounds of a whole step: the largest of products, least bytes and launches.

`python -m benchmarks.roofline > docs/roofline.md` writes this page.
"""

CONCLUSION = """## What follows

- At few rows, launches take longer than arithmetic. So fusion and CUDA graphs help more than faster products.
- A step reads the weights once for all of its rows. More rows are nearly free until products take longer than the
  launches. Batching without a compatibility key fills the steps that a key would leave half empty.
- At 64 tokens, attention is a few percent of the FLOPs. Its kernel helps because it needs no copies around it.
"""


def page() -> str:
    sections = [section(name, model) for name, model in networks().items()]
    return "\n".join([INTRODUCTION, *sections, CONCLUSION])


if __name__ == "__main__":
    print(page(), end="")
