"""Cosines for kernels that need no local memory.

libdevice's cosf keeps an array for angles above 100,000 radians. That array costs every kernel that calls it 32
bytes of local memory a thread.
"""

from kernels.backend import tl, triton

# 2 pi in two parts (Cody & Waite 1980): a product of the high part with a whole number below 2^15 is exact.
TWO_PI_HIGH = tl.constexpr(6.28125)
TWO_PI_LOW = tl.constexpr(0.0019353071795864769)


@triton.jit
def cos_turns(turns):
    """cos(2 pi turns) for turns of any size; float32, absolute error up to 2e-7."""
    r = tl.abs(turns - tl.floor(turns + 0.5))  # exact, 0 .. 1/2
    return _sin_quarter((0.25 - r) * 6.283185307179586)


@triton.jit
def cos_radians(x):
    """cos(x) for |x| up to 2e5 radians; float32, absolute error up to 2e-7."""
    k = tl.floor(x * 0.15915494309189535 + 0.5)
    r = tl.fma(-k, TWO_PI_LOW, tl.fma(-k, TWO_PI_HIGH, x))  # -pi .. pi
    return _sin_quarter(1.5707963267948966 - tl.abs(r))


@triton.jit
def _sin_quarter(z):
    """sin(z) for |z| up to pi / 2 by its Taylor series; the first term left out is below 6e-8 there."""
    w = z * z
    p = tl.fma(w, -2.5052108385441720e-08, 2.7557319223985893e-06)
    p = tl.fma(w, p, -1.9841269841269841e-04)
    p = tl.fma(w, p, 8.3333333333333332e-03)
    p = tl.fma(w, p, -1.6666666666666666e-01)
    return tl.fma(z * w, p, z)
