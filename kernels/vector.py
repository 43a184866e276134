"""Accesses of 16 bytes a thread for tensors of different dtypes in one kernel.

Triton gives all tensors that share an index the same elements a thread. With 8 of them a 16-bit tensor moves 16
bytes, but a float32 one moves 2 x 16, and each of these instructions uses half of every 32-byte sector it touches.
A tile with its own two-dimensional index gets its own layout, so both move whole sectors.
"""

from kernels.backend import tl, triton


@triton.jit
def _places(start, pointer, BLOCK: tl.constexpr):
    WIDTH: tl.constexpr = 128 // pointer.dtype.element_ty.primitive_bitwidth
    return start + tl.arange(0, BLOCK // WIDTH)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def load_wide(pointer, start, end, wanted, BLOCK: tl.constexpr):
    """Elements start .. start + BLOCK of a row in float32, 0 from `end` on and where they are not wanted."""
    place = _places(start, pointer, BLOCK)
    value = tl.load(pointer + place, mask=(place < end) & wanted, other=0.0)
    return tl.reshape(value, [BLOCK]).to(tl.float32)


@triton.jit
def store_wide(pointer, start, end, value, BLOCK: tl.constexpr):
    """The counterpart of load_wide."""
    place = _places(start, pointer, BLOCK)
    value = tl.reshape(value.to(pointer.dtype.element_ty), [place.shape[0], place.shape[1]])
    tl.store(pointer + place, value, mask=place < end)
