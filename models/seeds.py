"""Seeds of images, by the cipher that makes their noise, in Python integers. Imports no torch.

Philox 4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Random123); kernels/philox.py
computes the same on the device.
"""

ROUNDS = 10
MULTIPLIER_A, MULTIPLIER_B = 0xD2511F53, 0xCD9E8D57
WEYL_A, WEYL_B = 0x9E3779B9, 0xBB67AE85
MASK = 0xFFFFFFFF
SEED_BITS = 53  # JSON readers that use float64 keep integers up to 2^53 exact (RFC 8259, section 6)


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """One block in Python integers: four 32-bit words from a 128-bit counter and a 64-bit key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        a, b = MULTIPLIER_A * c0, MULTIPLIER_B * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & MASK, (a >> 32) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + WEYL_A) & MASK, (k1 + WEYL_B) & MASK
    return c0, c1, c2, c3


def image_seed(seed: int, index: int) -> int:
    """The seed of image `index` of a request: the request's own for image 0, a Philox word of both after it.

    A hash instead of seed + index: otherwise image 1 of seed 7 would be image 0 of seed 8.
    """
    if index == 0:
        return seed
    low, high, _, _ = philox4x32((index, 0, 0, 1), (seed & MASK, seed >> 32))
    return (low | high << 32) & ((1 << SEED_BITS) - 1)
