"""The noise that a process without torch draws again."""

import numpy as np
import pytest
import torch

from kernels import philox
from models.noise import normal

# float32 logarithms and cosines of two libraries; the noise goes to about 5
TOLERANCE = 5e-6


@pytest.mark.parametrize("seed", [0, 1, 77, (1 << 31) + 5, (1 << 53) - 1, (1 << 63) - 1])
@pytest.mark.parametrize("step", [0, 1, 250])
def test_the_noise_is_that_of_the_engine(seed: int, step: int) -> None:
    expected = philox.normal(torch.tensor([seed]), torch.tensor([step]), 3072)[0].numpy()
    drawn = normal(seed, step, 3072)
    assert (drawn.shape, drawn.dtype) == ((3072,), np.float32)
    assert np.abs(drawn - expected).max() < TOLERANCE


def test_each_step_and_each_seed_has_its_own() -> None:
    assert np.abs(normal(5, 1, 300) - normal(5, 2, 300)).max() > 1
    assert np.abs(normal(5, 1, 300) - normal(6, 1, 300)).max() > 1
