"""Which implementation runs, and the one place that knows whether Triton is there."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import triton.language as tl

    class triton:  # noqa: N801  # its own types know no launch options: kernel[grid](..., num_warps=4) is an error
        @staticmethod
        def jit(fn: Any) -> Any: ...
        @staticmethod
        def cdiv(x: int, y: int) -> int: ...
        @staticmethod
        def next_power_of_2(n: int) -> int: ...
else:
    try:
        import triton
        import triton.language as tl
    except ModuleNotFoundError:  # outside Linux there is none; the references run everywhere

        class _Absent:
            """Takes the place of both modules while kernel files are read: decorators and annotations."""

            def __getattr__(self, name: str) -> Any:
                return self

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                return self

        triton = tl = _Absent()

philox: Any = tl.philox  # Triton's own types say that it never returns

__all__ = ["image_layout", "philox", "tl", "triton", "use_triton", "width_tiles"]

TRITON_DEVICES = {"cuda"}  # tools that compile, count or interpret kernels without a GPU add "cpu" or "meta"


def use_triton(*tensors: Tensor | None) -> bool:
    """Inference on a GPU takes the kernel; a CPU, or a gradient that somebody needs, takes the reference."""
    given = [t for t in tensors if t is not None]
    if given[0].device.type not in TRITON_DEVICES:
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in given))


def image_layout(images: Tensor) -> torch.memory_format:
    """How [B, C, H, W] lies in memory: contiguous_format or channels_last; a kernel walks it in that order.

    One channel fits both descriptions; its stride then tells what a convolution will take it for.

    Raises:
        ValueError: neither, as of a slice.
    """
    if images.stride(1) == 1 and images.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    if images.is_contiguous():
        return torch.contiguous_format
    raise ValueError(f"images {tuple(images.shape)} with strides {images.stride()} are no whole tensor")


def width_tiles(width: int, smallest: int = 1) -> tuple[int, int]:
    """Main and tail tile of an axis, because a Triton tile is a power of two: 96 -> (64, 32), 768 -> (512, 256).

    The main tile is the largest power of two in `width`, the tail covers the rest (0: nothing is left); covering 96
    by one tile of 128 would multiply a third too much. No tile is below `smallest`; what stands out is masked.
    """
    main = max(smallest, 1 << (width.bit_length() - 1))
    tail = max(smallest, 1 << (width - main - 1).bit_length()) if width > main else 0
    return (2 * main, 0) if tail == main else (main, tail)
