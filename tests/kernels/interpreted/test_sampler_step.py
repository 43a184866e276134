"""The tests of tests/kernels/test_sampler_step.py, with the kernel by the interpreter; and its numbers beside the
reference's, which are float32 as well.
"""

import pytest
import torch

from kernels.sampler_step import sampler_step, sampler_step_reference
from tests.kernels import test_sampler_step as plain

test_mixed_batch_equals_a_loop_over_images = plain.test_mixed_batch_equals_a_loop_over_images
test_untouched_slots_stay_bitwise = plain.test_untouched_slots_stay_bitwise
test_an_image_does_not_depend_on_its_batch = plain.test_an_image_does_not_depend_on_its_batch_or_its_slot
test_unused_history_does_not_leak = plain.test_unused_history_of_an_earlier_request_does_not_leak
test_non_finite_output_is_reported = plain.test_non_finite_output_is_reported_for_its_image_alone
test_overflowing_state_is_reported = plain.test_overflowing_state_is_reported
test_an_empty_batch_changes_nothing = plain.test_an_empty_batch_changes_nothing
test_layouts_agree = plain.test_layouts_agree
test_pictures_are_clamped_and_rounded = plain.test_pictures_are_clamped_and_rounded
test_pictures_lie_at_their_places = plain.test_pictures_lie_at_their_places_with_channels_last
test_a_mixture_equals_a_weighted_sum = plain.test_a_mixture_equals_a_weighted_sum_of_its_rows
test_images_of_one_class_keep_their_bits = plain.test_images_of_one_class_keep_their_bits_beside_mixtures
test_a_look_mixes = plain.test_a_look_mixes_the_image_with_its_denoised_one


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 28, 28), (2, 23, 29)], ids=str)
def test_any_image_size(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, history, output = (torch.randn(3, *shape, generator=generator) for _ in range(3))
    indices = torch.tensor([[2, 0, 1, 2**53 - 1, 7], [0, 2, 2, 5, 1]])
    coefficients = torch.tensor(
        [[2.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.9, 1.0], [1.0, 1.0, 0.2, 0.5, 0.5, 0.0, 0.0, 0.0]]
    )
    expected_x, expected_history = x.clone(), history.clone()
    expected = torch.zeros(2, dtype=torch.bool)
    sampler_step_reference(expected_x, expected_history, output, indices, coefficients, expected)
    assert torch.equal(sampler_step(x, history, output, indices, coefficients), expected)
    torch.testing.assert_close(x, expected_x, rtol=0, atol=1e-5)  # noise up to 5.7, see NOISE_ERROR there
    torch.testing.assert_close(history, expected_history, rtol=0, atol=1e-6)
