"""Counter-based noise: every number is a pure function of (seed, step, element).

Philox 4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Random123), with the
conventions of Triton's tl.randn: the key is the 64-bit seed, one counter block per element, word 0 and 1 go
through Box-Muller, and the cosine branch is the sample. The noise depends on nothing but the request, so an image
does not depend on the batch in which it was computed.

Counter layout: (element, step, 0, 0). Step 0 is the initial latent, step k + 1 the noise of update k.
"""

import math

import torch
from torch import Tensor

from kernels.backend import philox, tl, triton
from kernels.cosine import cos_turns

ROUNDS = 10
MULTIPLIER_A, MULTIPLIER_B = 0xD2511F53, 0xCD9E8D57
WEYL_A, WEYL_B = 0x9E3779B9, 0xBB67AE85
MASK = 0xFFFFFFFF


def normal(seeds: Tensor, steps: Tensor, elements: int) -> Tensor:
    """Standard normal noise, one row per (seed, step).

    Args:
        seeds: [R] int64, 0 <= seed < 2^63.
        steps: [R] int64, 0 for the initial latent, k + 1 for update k.
        elements: E, numbers a row.

    Returns:
        [R, E] float32.
    """
    words = _philox_words(seeds, steps, elements)
    u, v = _uniform(words[0]), _uniform(words[1])
    return (-2.0 * u.clamp(min=1e-7).log()).sqrt() * (2 * math.pi * v).cos()


def _philox_words(seeds: Tensor, steps: Tensor, elements: int) -> tuple[Tensor, Tensor]:
    """Words 0 and 1 of the block of every element, [R, E] int64 in 0 .. 2^32 - 1.

    A product of two words has 64 bits, its high word above its low one; int64 keeps them all, whatever their sign.
    """
    c0, c1 = torch.arange(elements, device=seeds.device)[None], steps[:, None]  # [1, E], [R, 1]
    c2 = c3 = torch.zeros_like(c0[:, :1])
    k0, k1 = (seeds & MASK)[:, None], (seeds >> 32)[:, None]  # [R, 1]
    for _ in range(ROUNDS):
        a, b = c0 * MULTIPLIER_A, c2 * MULTIPLIER_B
        c0, c1, c2, c3 = ((b >> 32) ^ c1 ^ k0) & MASK, b, ((a >> 32) ^ c3 ^ k1) & MASK, a
        k0, k1 = (k0 + WEYL_A) & MASK, (k1 + WEYL_B) & MASK
    return c0, c1 & MASK


def _uniform(word: Tensor) -> Tensor:
    """Triton's uint_to_uniform_float: the absolute value of the word as int32, scaled to [0, 1)."""
    folded = torch.where(word >= 1 << 31, MASK - word, word)
    return folded.float() * 4.6566127342e-10


@triton.jit
def normal_noise(seed, step, element):
    """normal() inside a kernel: seed and step are scalars, element is a tile of int32; returns float32."""
    a, b, _, _ = philox(seed, element, step.to(tl.int32), 0, 0)
    u, v = tl.uint_to_uniform_float(a), tl.uint_to_uniform_float(b)
    return tl.sqrt(-2.0 * tl.log(tl.maximum(u, 1e-7))) * cos_turns(v)
