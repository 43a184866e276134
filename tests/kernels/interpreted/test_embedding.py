"""The tests of tests/kernels/test_embedding.py, with the kernels by the interpreter; and strided inputs."""

import torch

from kernels import label_silu
from tests.kernels import test_embedding as plain

test_waves_equal_the_formula = plain.test_waves_equal_the_formula
test_whole_timesteps = plain.test_whole_timesteps_have_the_waves_of_fractional_ones
test_label_silu_equals_the_formula = plain.test_label_silu_equals_the_formula


def test_strided_inputs_are_read_right() -> None:
    x, table, labels = plain.label_inputs(4, 64, torch.float32)
    expected = plain.label_formula(x[:, ::2], table[:, ::2], labels)
    out = label_silu(x[:, ::2], table[:, ::2], labels.repeat_interleave(2)[::2])
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=plain.label_bound(torch.float32, expected))
