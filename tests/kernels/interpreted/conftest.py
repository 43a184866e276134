"""Kernels by Triton's interpreter. These files run in a process of their own, which sets TRITON_INTERPRET=1 before
anything imports Triton; tests/kernels/test_interpreted.py starts it. An ordinary run does not collect them.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from kernels.backend import TRITON_DEVICES

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def interpreter() -> Iterator[None]:
    """CPU tensors take the kernels, and bfloat16 is computed as a GPU does.

    The interpreter holds bfloat16 as raw 16-bit patterns: it multiplies them as integers in tl.dot and cuts
    float32 off instead of rounding it.
    """
    if not INTERPRETED:  # conftest files are imported by an ordinary run, too
        yield
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original_cast, original_dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def widen(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def cast(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.int16)
            return TensorHandle(rounded.numpy().view(np.uint16).reshape(source.data.shape), tl.bfloat16)
        return original_cast(self, source, target)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return original_dot(self, widen(a), widen(b), *rest)

    np.seterr(all="ignore")  # a GPU does not warn of an overflow either
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "cast_impl", cast)
        patch.setattr(InterpreterBuilder, "create_dot", dot)
        for name in ("create_fp_trunc", "create_fp_ext"):
            patch.setattr(InterpreterBuilder, name, cast)
        TRITON_DEVICES.add("cpu")
        yield
        TRITON_DEVICES.discard("cpu")


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty gives NaN, so that an element which a kernel forgets to write is seen."""
    if not INTERPRETED:
        return
    for name in ("empty", "empty_like"):
        original = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, _original=original, **k: poison(_original(*a, **k)))


def poison(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(77)
