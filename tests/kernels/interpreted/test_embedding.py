"""The tests of tests/kernels/test_embedding.py, with the kernels by the interpreter; and strided inputs."""

import torch

from kernels import label_silu
from models.layers import ConditionEmbedder
from tests.kernels import test_embedding as plain
from tests.models.networks import randomized

test_waves_equal_the_formula = plain.test_waves_equal_the_formula
test_whole_timesteps = plain.test_whole_timesteps_have_the_waves_of_fractional_ones
test_label_silu_equals_the_formula = plain.test_label_silu_equals_the_formula


def test_strided_inputs_are_read_right() -> None:
    x, table, labels = plain.label_inputs(4, 64, torch.float32)
    expected = plain.label_formula(x[:, ::2], table[:, ::2], labels)
    out = label_silu(x[:, ::2], table[:, ::2], labels.repeat_interleave(2)[::2])
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=plain.label_bound(torch.float32, expected))


def test_the_condition_of_a_few_step_network_is_that_of_the_reference() -> None:
    """The joined embedding of t, r and w, and the product that adds to another."""
    condition = randomized(ConditionEmbedder(32, 10, few_step=True))
    given = torch.tensor([500.0, 20.0, 999.0]), torch.tensor([3, 10, 0]), torch.tensor([250.0, 0.0, 999.0])
    scales = torch.tensor([1.0, 2.5, 3.0])
    out = condition(*given, scales)
    expected = condition.requires_grad_(True)(*given, scales)  # gradients need the references
    torch.testing.assert_close(out, expected.detach(), rtol=1e-5, atol=2e-5)
