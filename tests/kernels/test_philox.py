"""Noise: the words of Random123, the distribution of a normal, and a stream that depends on its request alone."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kernels.philox import _philox_words, normal
from models.seeds import image_seed, philox4x32

SEEDS = st.integers(0, 2**63 - 1)
SEEDS_53 = st.integers(0, 2**53 - 1)
STEPS = st.integers(0, 2**32 - 1)


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(
    ("counter", "key", "block"),
    [
        pytest.param(
            "00000000 00000000 00000000 00000000",
            "00000000 00000000",
            "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
            id="zeros",
        ),
        pytest.param(
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
            id="ones",
        ),
        pytest.param(
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
            id="pi",
        ),
    ],
)
def test_known_answers_of_random123(counter: str, key: str, block: str) -> None:
    """philox4x32-10 in the file kat_vectors that Random123 ships."""
    c0, c1, c2, c3 = words(counter)
    k0, k1 = words(key)
    assert philox4x32((c0, c1, c2, c3), (k0, k1)) == words(block)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(SEEDS, STEPS), min_size=1, max_size=3), st.integers(1, 40))
def test_tensor_words_equal_integer_words(rows: list[tuple[int, int]], elements: int) -> None:
    seeds, steps = (torch.tensor(column) for column in zip(*rows, strict=True))
    first, second = _philox_words(seeds, steps, elements)  # [R, E] twice
    for i, (seed, step) in enumerate(rows):
        blocks = [philox4x32((e, step, 0, 0), (seed & 0xFFFFFFFF, seed >> 32))[:2] for e in range(elements)]
        assert list(zip(first[i].tolist(), second[i].tolist(), strict=True)) == blocks


def test_normal_is_box_muller_of_the_words() -> None:
    """Both words fold the sign of an int32 away and scale to [0, 1); the cosine branch is the sample."""
    seed, step, elements = 7, 3, 257
    expected = []
    for e in range(elements):
        block = philox4x32((e, step, 0, 0), (seed, 0))[:2]
        signed = [word - 2**32 if word >= 2**31 else word for word in block]
        u, v = ((x if x >= 0 else -x - 1) / 2**31 for x in signed)
        expected.append(math.sqrt(-2 * math.log(max(u, 1e-7))) * math.cos(2 * math.pi * v))
    got = normal(torch.tensor([seed]), torch.tensor([step]), elements)[0]
    # float32: u carries 6e-8 and cos(2 pi v) an angle error of 2 pi 6e-8, times at most sqrt(-2 log 1e-7) = 5.7
    torch.testing.assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=5e-6)


def test_statistics() -> None:
    z = normal(torch.arange(50), torch.full((50,), 2), 4000).flatten().double()  # 200,000 numbers
    assert abs(z.mean()) < 4 / math.sqrt(len(z))  # four standard errors
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / len(z))
    assert stats.kstest(z.numpy(), "norm").pvalue > 0.01  # of a fixed stream, so this cannot flicker


@pytest.mark.parametrize("other", [(1, 0), (0, 1), (1 << 32, 0)], ids=["seed", "step", "upper-seed-word"])
def test_streams_are_uncorrelated(other: tuple[int, int]) -> None:
    z = normal(torch.tensor([0, other[0]]), torch.tensor([0, other[1]]), 10_000)
    assert abs(torch.corrcoef(z)[0, 1]) < 4 / math.sqrt(10_000)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(SEEDS, st.integers(0, 1000)), min_size=2, max_size=5), st.integers(1, 50))
def test_rows_do_not_depend_on_their_neighbours(rows: list[tuple[int, int]], elements: int) -> None:
    seeds, steps = (torch.tensor(column) for column in zip(*rows, strict=True))
    together = normal(seeds, steps, elements)
    alone = [normal(seeds[i : i + 1], steps[i : i + 1], elements)[0] for i in range(len(rows))]
    assert torch.equal(together, torch.stack(alone))
    assert torch.equal(together, normal(seeds, steps, elements + 7)[:, :elements])  # nor how many elements follow


@given(SEEDS_53)
def test_first_image_keeps_the_seed(seed: int) -> None:
    assert image_seed(seed, 0) == seed


@settings(max_examples=50)
@given(SEEDS_53)
def test_images_of_a_request_have_distinct_small_seeds(seed: int) -> None:
    seeds = [image_seed(seed, i) for i in range(64)]
    assert len(set(seeds)) == 64
    assert all(0 <= s < 2**53 for s in seeds)


def test_images_of_neighbouring_seeds_stay_apart() -> None:
    seeds = {image_seed(seed, i) for seed in range(100) for i in range(100)}
    assert len(seeds) == 10_000


TRITON_RANDN = """
import json, sys
import torch, triton
import triton.language as tl

@triton.jit
def draw(out, seed, N: tl.constexpr):
    offsets = tl.arange(0, N)
    tl.store(out + offsets, tl.randn(seed, offsets))

out = torch.full((64,), float("nan"))
draw[(1,)](out, int(sys.argv[1]), N=64)
print(json.dumps(out.tolist()))
"""


@pytest.mark.parametrize("seed", [0, 12_345, 2**53 - 1], ids=["zero", "one-word", "two-words"])
def test_agrees_with_triton_randn(seed: int, tmp_path: Path) -> None:
    """tl.randn(seed, offset) uses the counter (offset, 0, 0, 0): our step 0. Interpreted, in its own process."""
    pytest.importorskip("triton", reason="needs Triton")
    script = tmp_path / "draw.py"  # triton.jit reads the source of its kernels from a file
    script.write_text(TRITON_RANDN)
    done = subprocess.run(
        [sys.executable, str(script), str(seed)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = torch.tensor(json.loads(done.stdout))
    # numpy's and torch's log and cos may differ in the last place of float32, here up to 4.5 in size
    got = normal(torch.tensor([seed]), torch.tensor([0]), 64)[0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
