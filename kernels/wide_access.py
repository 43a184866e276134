"""Loads and stores of 16 bytes a thread for tensors of different dtypes in one kernel.

Triton gives the same elements a thread to all tensors that share offsets. With 8 elements a thread, a 16-bit tensor
moves 16 bytes in one instruction. A float32 tensor then needs two instructions, and each of them uses half of every
32-byte sector that it touches. Two-dimensional offsets of its own give each tensor its own layout, so both move
whole sectors.
"""

from kernels.backend import tl, triton


@triton.jit
def _wide_offsets(start, ptr, BLOCK: tl.constexpr):
    """[BLOCK / WIDTH, WIDTH], where WIDTH elements of ptr are 16 bytes."""
    WIDTH: tl.constexpr = 128 // ptr.dtype.element_ty.primitive_bitwidth
    return start + tl.arange(0, BLOCK // WIDTH)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def load_wide(ptr, start, end, wanted, BLOCK: tl.constexpr):
    """Elements start .. start + BLOCK of a row as [BLOCK] float32; 0 from `end` on, and all 0 if not wanted."""
    offs = _wide_offsets(start, ptr, BLOCK)
    value = tl.load(ptr + offs, mask=(offs < end) & wanted, other=0.0)
    return tl.reshape(value, [BLOCK]).to(tl.float32)


@triton.jit
def store_wide(ptr, start, end, value, BLOCK: tl.constexpr):
    """Write value [BLOCK] to elements start .. start + BLOCK of a row, up to `end`, in the dtype of ptr."""
    offs = _wide_offsets(start, ptr, BLOCK)
    value = tl.reshape(value.to(ptr.dtype.element_ty), [offs.shape[0], offs.shape[1]])
    tl.store(ptr + offs, value, mask=offs < end)
