"""Counts the kernel launches of one denoising step, with fused kernels and without, on a machine without a GPU.

    python -m benchmarks.launches

The step runs on a CPU and records every operation that PyTorch dispatches, without views and allocations. The fused
step also records the launches of the Triton kernels. A convolution with a bias counts as two, because PyTorch adds
the bias after cuDNN's kernel. Every other operation counts as one. Some (GroupNorm, indexing) are several on a GPU,
so the unfused numbers are lower bounds. GELU counts as a launch, although on a GPU the matrix product applies it.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.inspection.recorder import Launch, recorded_launches
from kernels.gather_rows import NUM_ROW_INDICES, gather_rows
from kernels.sampler_step import NUM_COEFFICIENTS, NUM_INDICES, sampler_step
from models import DIT, UNet
from service.engine.runner import lay_out

ALLOCATIONS = ("empty", "new_empty", "_unsafe_view", "_local_scalar_dense")
PRODUCTS = {
    "mm": "product",
    "addmm": "product",
    "bmm": "product",
    "baddbmm": "product",
    "convolution": "convolution",
}


class LaunchCounter(TorchDispatchMode):
    """Counts launches by kind, and the bytes of their operands, each operand once a launch."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view and not name.startswith(ALLOCATIONS):
            self.launches[PRODUCTS.get(name, "other")] += 1
            if name == "convolution" and args[2] is not None:
                self.launches["other"] += 1
            self.bytes += bytes_of([*args, *(kwargs or {}).values(), out])
        return out

    def add(self, launch: Launch) -> None:
        self.launches["Triton"] += 1
        self.bytes += bytes_of(launch.arguments.values())


def bytes_of(values: Any) -> int:
    tensors = {id(t): t for t in tree_leaves(list(values)) if isinstance(t, Tensor)}
    return sum(t.numel() * t.element_size() for t in tensors.values())


@contextmanager
def counted(fused: bool) -> Iterator[LaunchCounter]:
    """A counter of the launches within the block; fused: operations launch their Triton kernels."""
    counter = LaunchCounter()
    with torch.no_grad(), recorded_launches() if fused else nullcontext([]) as launches, counter:
        yield counter
    for launch in launches:
        counter.add(launch)


def count_step(model: nn.Module, rows: int, fused: bool, device: str = "cpu") -> LaunchCounter:
    """A step in the middle of `rows` unguided images: gather, forward, sampler update."""
    weight = next(model.parameters())
    layout = lay_out(model, torch.device("cuda"))
    shape = (rows, *image_shape(model))
    x, history = (torch.zeros(shape, device=device).contiguous(memory_format=layout) for _ in range(2))
    block = torch.zeros(rows, NUM_ROW_INDICES, dtype=torch.int64, device=device)
    indices = torch.zeros(rows, NUM_INDICES, dtype=torch.int64, device=device)
    coefficients = torch.zeros(rows, NUM_COEFFICIENTS, device=device)
    t, y = torch.zeros(rows, device=device), torch.zeros(rows, dtype=torch.int64, device=device)
    with counted(fused) as counter:
        images = gather_rows(x, block, weight.dtype)
        output = model(images, t, y)
        sampler_step(x, history, output, indices, coefficients)
    return counter


def image_shape(model: nn.Module) -> tuple[int, int, int]:
    size = cast(int, model.image_size)
    return cast(int, model.image_channels), size, size


def networks() -> dict[str, nn.Module]:
    """Both networks at their default sizes, and a DiT of 12 blocks."""
    models = {"DIT, 2 blocks": DIT(), "DIT, 12 blocks": DIT(depth=12), "UNet, 18 residual blocks": UNet()}
    return {name: model.eval().requires_grad_(False) for name, model in models.items()}


def main() -> None:
    print("| a step of | | Triton | matrix products | convolutions | other | launches |")
    print("|---|---|---|---|---|---|---|")
    for name, model in networks().items():
        for fused in (False, True):
            counts = count_step(model, 2, fused).launches
            kinds = [counts[kind] for kind in ("Triton", "product", "convolution", "other")]
            cells = [name, "fused" if fused else "plain", *map(str, kinds), f"**{sum(kinds)}**"]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
