"""The block of a step: what the kernels look up, and the padding behind it."""

import pytest
import torch

from service.engine.slot_table import SlotTable
from service.engine.step_block import StepBlock, StepOutput, block_bytes, output_bytes, pack
from tests.service.engine.tiny import make_params, make_request

NULL, SCRATCH = 10, 77


def packed(num_rows: int, num_images: int, rubbish: int = 255) -> StepBlock:
    """A guided image in the middle of its steps, a plain one in its only step, a guided one in its first."""
    buffer = torch.full((block_bytes(8, 8),), rubbish, dtype=torch.uint8)
    block = StepBlock(buffer, num_rows, num_images)
    requests = [
        make_request(make_params(class_label=4, num_steps=4, guidance_scale=2.0, seeds=(2**53 - 1,))),
        make_request(make_params(class_label=5, num_steps=1, seeds=(6,))),
        make_request(make_params(class_label=6, num_steps=5, guidance_scale=3.0, seeds=(7,))),
    ]
    tasks = [request.tasks[0] for request in requests]
    tasks[0].step = 2
    for task, slot in zip(tasks, (3, 0, 9), strict=True):
        task.slot = slot
    pack(block, SlotTable(SCRATCH).look_up(tasks), NULL, SCRATCH)
    return block


def test_rows_are_the_images_and_then_the_unconditional_ones() -> None:
    block = packed(5, 3)
    seed = 2**53 - 1
    assert block.rows.tolist() == [[3, seed, 0], [0, 6, 1], [9, 7, 1], [3, seed, 0], [9, 7, 1]]
    assert block.labels.tolist() == [4, 5, 6, NULL, NULL]
    assert block.timesteps.tolist() == [500, 1000, 1000, 500, 1000]


@pytest.mark.parametrize("num_rows", range(1, 9))
def test_every_tensor_begins_at_a_multiple_of_16_bytes(num_rows: int) -> None:
    """Triton compiles a kernel again for another alignment."""
    for num_images in range(1, num_rows + 1):
        block = StepBlock(torch.zeros(block_bytes(num_rows, num_images), dtype=torch.uint8), num_rows, num_images)
        tensors = [tensor for tensor in vars(block).values() if isinstance(tensor, torch.Tensor)]
        assert len(tensors) == 13
        assert {(tensor.data_ptr() - block.bytes.data_ptr()) % 16 for tensor in tensors} == {0}


def test_images_know_their_rows_slot_and_noise() -> None:
    block = packed(5, 3)
    assert block.indices.tolist() == [[3, 0, 3, 2**53 - 1, 3], [0, 1, 1, 6, 1], [9, 2, 4, 7, 1]]
    assert block.coefficients[:, 0].tolist() == [2, 1, 3]  # guidance scales
    assert block.places.tolist() == [-1, 0, -1]
    assert block.preview[1].tolist() == [1, 0]


@pytest.mark.parametrize("rubbish", [0, 255])
def test_the_rest_of_a_block_is_harmless_padding(rubbish: int) -> None:
    small, block = packed(5, 3), packed(8, 8, rubbish)
    assert torch.equal(block.rows[:5], small.rows)
    assert torch.equal(block.indices[:3], small.indices)
    assert torch.equal(block.coefficients[:3], small.coefficients)
    assert block.rows[5:].tolist() == [[SCRATCH, 0, 0]] * 3
    assert block.labels[5:].tolist() == [NULL] * 3
    assert block.timesteps[5:].tolist() == [0.0] * 3
    assert block.indices[3:].tolist() == [[SCRATCH, 0, 0, 0, 0]] * 5
    assert not block.coefficients[3:].any()
    assert block.places.tolist() == [-1, 0] + [-1] * 6


def test_previews_leave_beside_finished_images_each_with_its_preview() -> None:
    buffer = torch.zeros(block_bytes(4, 4), dtype=torch.uint8)
    block = StepBlock(buffer, 3, 3)
    plain, early, velocity = (
        make_request(make_params(num_steps=1)),
        make_request(make_params(num_steps=4), num_previews=3),
        make_request(make_params(num_steps=4, sampler="ab2"), num_previews=1),
    )
    tasks = [early.tasks[0], plain.tasks[0], velocity.tasks[0]]
    tasks[2].step = 1
    for task, slot in zip(tasks, (5, 2, 7), strict=True):
        task.slot = slot
    pack(block, SlotTable(SCRATCH).look_up(tasks), NULL, SCRATCH)
    assert block.places.tolist() == [0, 1, 2]
    assert block.preview.tolist() == [[0, 1], [1, 0], [1, -0.5]]  # the flow's x0 = x - u v, at u = 1/2


def test_a_block_without_images_is_all_padding() -> None:
    block = StepBlock(torch.zeros(block_bytes(2, 2), dtype=torch.uint8), 2, 2)
    pack(block, SlotTable(SCRATCH).look_up([]), NULL, SCRATCH)
    assert block.rows.tolist() == [[SCRATCH, 0, 0]] * 2
    assert block.places.tolist() == [-1] * 2


def test_one_copy_carries_everything() -> None:
    block = packed(8, 8)
    buffer = torch.empty(block_bytes(8, 8), dtype=torch.uint8)
    copy = StepBlock(buffer, 8, 8)
    copy.bytes.copy_(block.bytes)
    for name in ("rows", "labels", "timesteps", "indices", "coefficients", "places", "preview"):
        assert torch.equal(getattr(copy, name), getattr(block, name)), name
        assert getattr(copy, name).is_contiguous()
    assert len(block.bytes) == 8 * 152  # all sections are multiples of 16, so nothing is between them


@pytest.mark.parametrize("num_images", [1, 16, 17])
def test_the_flags_come_back_with_as_many_pictures_as_are_wanted(num_images: int) -> None:
    shape = (3, 4, 5)
    device, host = (torch.zeros(output_bytes(40, shape), dtype=torch.uint8) for _ in range(2))
    output, here = StepOutput(device, num_images, shape), StepOutput(host, num_images, shape)
    output.finite[:], output.pixels[:] = True, 7
    here.part(1).copy_(output.part(1))
    assert here.finite.all()
    assert here.pixels.sum(dim=(1, 2, 3)).tolist() == [7 * 60] + [0] * (num_images - 1)
    assert output.pixels.shape == (num_images, 4, 5, 3)
    assert output.pixels.storage_offset() % 16 == 0
    assert len(output.part(num_images)) == len(output.bytes) == output_bytes(num_images, shape)
