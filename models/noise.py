"""The noise of kernels/philox.py by NumPy, for processes without torch: they compute again what a sampler drew.

On a CPU an image of 3 x 32 x 32 takes 0.5 ms a step here, and 7 ms by torch's reference, half as long as a step.
"""

import math

import numpy as np

from models.seeds import MASK, MULTIPLIER_A, MULTIPLIER_B, ROUNDS, WEYL_A, WEYL_B


def normal(seed: int, step: int, elements: int) -> np.ndarray:
    """Standard normal noise, [elements] float32, equal to kernels.philox.normal up to rounding.

    Args:
        seed: 0 <= seed < 2^63.
        step: 0 for the initial latent, k + 1 for update k.
    """
    low, word, factor_a, factor_b = map(np.uint64, (MASK, 32, MULTIPLIER_A, MULTIPLIER_B))
    c0 = np.arange(elements, dtype=np.uint64)
    c1, c2, c3 = np.full_like(c0, step), np.zeros_like(c0), np.zeros_like(c0)
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(ROUNDS):
        a, b = c0 * factor_a, c2 * factor_b  # of 32 bits each, so the products fit
        c0, c1, c2, c3 = (b >> word) ^ c1 ^ np.uint64(k0), b & low, (a >> word) ^ c3 ^ np.uint64(k1), a & low
        k0, k1 = (k0 + WEYL_A) & MASK, (k1 + WEYL_B) & MASK
    u, v = _uniform(c0), _uniform(c1)
    return np.sqrt(-2 * np.log(np.maximum(u, np.float32(1e-7)))) * np.cos(np.float32(2 * math.pi) * v)


def _uniform(word: np.ndarray) -> np.ndarray:
    """Triton's uint_to_uniform_float: the absolute value of the word as int32, scaled to [0, 1)."""
    folded = np.where(word >= 1 << 31, MASK - word, word)
    return folded.astype(np.float32) * np.float32(4.6566127342e-10)
