"""The tests of tests/kernels/test_gather_rows.py, with the kernel by the interpreter."""

from tests.kernels import test_gather_rows as plain

test_rows_hold_their_slots_and_new_ones_their_noise = plain.test_rows_hold_their_slots_and_new_ones_their_noise
test_any_image_size = plain.test_any_image_size
test_noise_does_not_depend_on_the_layout = plain.test_noise_does_not_depend_on_the_layout
test_rubbish_in_a_new_slot_is_overwritten = plain.test_rubbish_in_a_new_slot_is_overwritten
