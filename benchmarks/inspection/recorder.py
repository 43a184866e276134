"""Runs code and records every Triton launch instead of executing it.

The inspection, the launch counts and the roofline use it, so they need no GPU. Tensors may be on the CPU or on
meta. The outputs of the recorded kernels stay uninitialised.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from triton.runtime.jit import JITFunction

from kernels.backend import TRITON_DEVICES


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel."""

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # every parameter of the kernel by name, tensors as passed
    options: dict[str, Any]  # num_warps, num_stages, maxnreg

    @property
    def name(self) -> str:
        return self.kernel.__name__.strip("_")


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Within the block, operations on any device launch their Triton kernels; the list collects the launches."""
    launches: list[Launch] = []

    def record(kernel: JITFunction, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in kwargs}
        bound = kernel.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        launches.append(Launch(kernel, grid, dict(bound.arguments), options))

    added = {"cpu", "meta"} - TRITON_DEVICES
    TRITON_DEVICES.update(added)
    try:
        with patch.object(JITFunction, "run", record):
            yield launches
    finally:
        TRITON_DEVICES.difference_update(added)
