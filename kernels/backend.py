"""Which implementation runs, and what all kernels share about layouts and tiles.

This is the only file that knows whether Triton is installed.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import triton.language as tl

    class triton:  # noqa: N801  # its own types know no launch options: kernel[grid](..., num_warps=4) is an error
        @staticmethod
        def jit(fn: Any = None, *, do_not_specialize: list[str] | None = None) -> Any: ...
        @staticmethod
        def cdiv(x: int, y: int) -> int: ...
        @staticmethod
        def next_power_of_2(n: int) -> int: ...
else:
    try:
        import triton
        import triton.language as tl
    except ModuleNotFoundError:  # Triton exists for Linux only; the references run everywhere

        class _Absent:
            """Stands for both modules while kernel files are imported, for their decorators and annotations."""

            def __getattr__(self, name: str) -> Any:
                return self

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                return self

        triton = tl = _Absent()

philox: Any = tl.philox  # Triton's own types say that it never returns

__all__ = ["contiguous_rows", "image_layout", "philox", "tl", "triton", "use_triton", "width_tiles"]

TRITON_DEVICES = {"cuda"}  # tools that compile, count or interpret kernels without a GPU add "cpu" and "meta"


def use_triton(*tensors: Tensor | None) -> bool:
    """Whether the Triton kernel runs: not for CPU tensors, and not for inputs that require grad."""
    given = [t for t in tensors if t is not None]
    if given[0].device.type not in TRITON_DEVICES:
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in given))


def image_layout(images: Tensor) -> torch.memory_format:
    """The memory format of images [B, C, H, W]: contiguous_format or channels_last.

    Images of one channel fit both formats; then the channel stride decides, as it does in cuDNN.

    Raises:
        ValueError: the tensor has neither format; a slice is an example.
    """
    if images.stride(1) == 1 and images.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    if images.is_contiguous():
        return torch.contiguous_format
    given = f"shape {tuple(images.shape)} and strides {images.stride()}"
    raise ValueError(f"images must be contiguous or channels_last, got {given}")


def width_tiles(width: int, smallest: int = 1) -> tuple[int, int]:
    """Main and tail tile that cover an axis: 96 -> (64, 32), 768 -> (512, 256), 64 -> (64, 0).

    A Triton tile is a power of two, and one tile of 128 for 96 columns would multiply a third too much. So the
    main tile is the largest power of two up to `width`, and the tail covers the rest. No tile is smaller than
    `smallest`; kernels mask the columns that exceed `width`.
    """
    main = max(smallest, 1 << (width.bit_length() - 1))
    tail = max(smallest, 1 << (width - main - 1).bit_length()) if width > main else 0
    return (2 * main, 0) if tail == main else (main, tail)


def contiguous_rows(x: Tensor) -> Tensor:
    """x [B, D] itself if the elements of a row lie next to each other, as in a slice of columns; else a copy."""
    return x if x.stride(1) == 1 else x.contiguous()
