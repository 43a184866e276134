"""The fused sampler step against a Python loop over images in float64.

Letters: S slots, n images of this step, R forward rows, C x H x W the image.
"""

import itertools

import pytest
import torch
from torch import Tensor

from kernels import sampler_step
from kernels.philox import normal
from kernels.sampler_step import Mixtures, Pictures
from tests.kernels.rounding import DTYPES

SHAPE = (3, 5, 7)  # C, H, W
W, P, Q, A, B, C, S, CLAMP = range(8)


def loop(x: Tensor, history: Tensor, output: Tensor, indices: Tensor, coefficients: Tensor) -> None:
    """Image by image, in place, float64."""
    for (slot, cond, uncond, seed, step), row in zip(indices.tolist(), coefficients.tolist(), strict=True):
        w, p, q, a, b, c, s, clamp = row
        model_output = (1 - w) * output[uncond].double() + w * output[cond].double()
        denoised = p * x[slot] + q * model_output
        if clamp:
            denoised = denoised.clip(-1, 1)
        z = normal(torch.tensor([seed]), torch.tensor([step]), x[slot].numel()).double().view(SHAPE)
        x[slot] = a * x[slot] + b * denoised + c * history[slot] + s * z
        history[slot] = denoised


def mixed_batch() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Eight images, every combination of guidance, clamp and noise, in scattered slots and rows of a forward."""
    generator = torch.Generator().manual_seed(1)
    kinds = list(itertools.product([False, True], repeat=3))
    slots = [9, 2, 11, 0, 5, 3, 7, 10]  # of 12; 1, 4, 6, 8 belong to nobody here
    cond = [3, 0, 11, 6, 1, 9, 4, 7]
    uncond = [c if not guided else u for c, u, (guided, _, _) in zip(cond, [2, 5, 8, 10] * 2, kinds, strict=True)]
    indices = torch.tensor([[s, c, u, 2**40 + s, s % 4] for s, c, u in zip(slots, cond, uncond, strict=True)])
    coefficients = torch.randn(8, 8, generator=generator)
    for row, (guided, clamp, noise) in zip(coefficients, kinds, strict=True):
        row[W] = 3.5 if guided else 1.0
        row[CLAMP] = float(clamp)
        row[S] = row[S] if noise else 0.0
    x, history, output = (torch.randn(12, *SHAPE, generator=generator) for _ in range(3))
    return x, history, output, indices, coefficients


@DTYPES
def test_mixed_batch_equals_a_loop_over_images(dtype: torch.dtype) -> None:
    x, history, output, indices, coefficients = mixed_batch()
    output = output.to(dtype)  # the loop reads the same rounded output, so the bound is float32's for every dtype
    expected_x, expected_history = x.double(), history.double()
    loop(expected_x, expected_history, output, indices, coefficients.double())
    finite = sampler_step(x, history, output, indices, coefficients)
    # about ten float32 operations on numbers up to 100
    torch.testing.assert_close(x.double(), expected_x, rtol=0, atol=100 * 10 * 2.0**-24)
    torch.testing.assert_close(history.double(), expected_history, rtol=0, atol=100 * 10 * 2.0**-24)
    assert finite.tolist() == [True] * 8


SPANS = torch.tensor([[0, 2], [0, 0], [12, 12], [2, 3], [1, 1], [3, 6], [5, 5], [10, 11]])  # of mixed_batch


def weights() -> Tensor:
    """Of rows 0 to 11; NaN where no span leads."""
    values = torch.rand(12, generator=torch.Generator().manual_seed(2)) / 3
    values[[6, 7, 8, 9, 11]] = torch.nan
    return values


def test_a_mixture_equals_a_weighted_sum_of_its_rows() -> None:
    x, history, output, indices, coefficients = mixed_batch()
    mixed = Mixtures(SPANS, weights())
    summed = output.clone().double()
    expected_x, expected_history = x.double(), history.double()
    further = output.new_zeros(8, *SHAPE).double()
    for image, (first, end) in enumerate(SPANS.tolist()):
        parts = [(mixed.weights[row].double(), output[row].double()) for row in range(first, end)]
        own = 1 - sum((weight for weight, _ in parts), torch.zeros((), dtype=torch.float64))
        further[image] = own * summed[indices[image, 1]] + sum((w * row for w, row in parts), further[image])
    conditional = torch.cat([output.double(), further])
    elsewhere = indices.clone()
    elsewhere[:, 1] = 12 + torch.arange(8)  # rows of the sums, which the loop takes for those of one class
    unguided = indices[:, 1] == indices[:, 2]
    elsewhere[unguided, 2] = elsewhere[unguided, 1]
    loop(expected_x, expected_history, conditional, elsewhere, coefficients.double())
    finite = sampler_step(x, history, output, indices, coefficients, None, None, mixed)
    torch.testing.assert_close(x.double(), expected_x, rtol=0, atol=100 * 14 * 2.0**-24)
    torch.testing.assert_close(history.double(), expected_history, rtol=0, atol=100 * 14 * 2.0**-24)
    assert finite.all()


def test_images_of_one_class_keep_their_bits_beside_mixtures() -> None:
    x, history, output, indices, coefficients = mixed_batch()
    other_x, other_history = x.clone(), history.clone()
    sampler_step(x, history, output, indices, coefficients)
    sampler_step(other_x, other_history, output, indices, coefficients, None, None, Mixtures(SPANS, weights()))
    for image, (slot, (first, end)) in enumerate(zip(indices[:, 0], SPANS.tolist(), strict=True)):
        assert torch.equal(other_x[slot], x[slot]) == (first == end), image
        assert torch.equal(other_history[slot], history[slot]) == (first == end), image


@pytest.mark.parametrize("of_output", [torch.contiguous_format, torch.channels_last], ids=str)
def test_layouts_agree(of_output: torch.memory_format) -> None:
    """Where a number lies in memory changes nothing, its noise included."""
    x, history, output, indices, coefficients = mixed_batch()
    other_x, other_history = (t.clone(memory_format=torch.channels_last) for t in (x, history))
    sampler_step(x, history, output, indices, coefficients)
    sampler_step(other_x, other_history, output.contiguous(memory_format=of_output), indices, coefficients)
    assert torch.equal(other_x, x)
    assert torch.equal(other_history, history)


def test_untouched_slots_stay_bitwise() -> None:
    x, history, output, indices, coefficients = mixed_batch()
    x[4], history[6] = torch.nan, torch.inf  # what a freed slot holds must stay there and change no image
    before_x, before_history = x.clone(), history.clone()
    assert sampler_step(x, history, output, indices, coefficients).all()
    for slot in (1, 4, 6, 8):
        torch.testing.assert_close(x[slot], before_x[slot], rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(history[slot], before_history[slot], rtol=0, atol=0)
    assert not torch.equal(x[9], before_x[9])


def test_an_image_does_not_depend_on_its_batch_or_its_slot() -> None:
    x, history, output, indices, coefficients = mixed_batch()
    start_x, start_history = x.clone(), history.clone()
    sampler_step(x, history, output, indices, coefficients)
    for i, (slot, cond, uncond, seed, step) in enumerate(indices.tolist()):
        alone_x, alone_history = start_x[slot : slot + 1].clone(), start_history[slot : slot + 1].clone()
        rows, index = output[[cond, uncond]], torch.tensor([[0, 0, 1, seed, step]])
        sampler_step(alone_x, alone_history, rows, index, coefficients[i : i + 1])
        assert torch.equal(alone_x[0], x[slot])
        assert torch.equal(alone_history[0], history[slot])


@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf])
def test_unused_history_of_an_earlier_request_does_not_leak(rubbish: float) -> None:
    x, history, output, indices, coefficients = mixed_batch()
    coefficients[:, C] = 0
    clean_x = x.clone()
    sampler_step(clean_x, torch.zeros_like(history), output, indices, coefficients)
    finite = sampler_step(x, torch.full_like(history, rubbish), output, indices, coefficients)
    assert finite.all()
    assert torch.equal(x, clean_x)


@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf, -torch.inf], ids=["nan", "inf", "minus-inf"])
@pytest.mark.parametrize("clamp", [0.0, 1.0], ids=["free", "clamped"])
def test_non_finite_output_is_reported_for_its_image_alone(rubbish: float, clamp: float) -> None:
    """A clamp would turn an infinite prediction into a plausible image, so it is seen before that."""
    x, history, output, indices, coefficients = mixed_batch()
    coefficients[:, CLAMP] = clamp
    output[indices[4, 1], 0, 2, 3] = rubbish  # one pixel of the conditional row of a guided image
    finite = sampler_step(x, history, output, indices, coefficients)
    assert finite.tolist() == [True] * 4 + [False] + [True] * 3


def test_overflowing_state_is_reported() -> None:
    x, history, output, indices, coefficients = mixed_batch()
    coefficients[2, A], coefficients[2, P] = 3e38, 0.0
    x[indices[2, 0]] = 10.0
    assert sampler_step(x, history, output, indices, coefficients).tolist() == [True] * 2 + [False] + [True] * 5


def still(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x' = values [n, C, H, W] and d = the output, 0.25."""
    n = len(values)
    numbers = torch.zeros(n, 8)
    numbers[:, Q] = numbers[:, A] = 1.0
    indices = torch.tensor([[i, i, i, 0, 1] for i in range(n)])
    return values.clone(), torch.zeros_like(values), torch.full_like(values, 0.25), indices, numbers


def shown(values: Tensor, places: list[int], look: list[list[float]]) -> Tensor:
    n, C, H, W = values.shape
    pixels = torch.full((n, H, W, C), 99, dtype=torch.uint8)
    sampler_step(*still(values), None, Pictures(pixels, torch.tensor(places), torch.tensor(look)))
    return pixels


def test_pictures_are_clamped_and_rounded() -> None:
    values = torch.tensor([-5.0, -1.0, 0.0, 0.999, 1.0, 5.0]).view(1, 1, 1, 6)
    assert shown(values, [0], [[1.0, 0.0]]).flatten().tolist() == [0, 0, 128, 255, 255, 255]  # 127.5 rounds to even


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_pictures_lie_at_their_places_with_channels_last(layout: torch.memory_format) -> None:
    values = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels = shown(values.contiguous(memory_format=layout), [1, -1, 0, -1], [[1.0, 0.0]] * 4)
    expected = ((values + 1) * 127.5).round().permute(0, 2, 3, 1).to(torch.uint8)
    assert torch.equal(pixels[:2], expected[[2, 0]])
    assert (pixels[2:] == 99).all()


def test_a_look_mixes_the_image_with_its_denoised_one() -> None:
    values = torch.tensor([0.5, -0.5]).view(2, 1, 1, 1)
    assert shown(values, [0, 1], [[0.0, 1.0], [1.0, -2.0]]).flatten().tolist() == [159, 0]  # 0.25; -0.5 - 0.5 = -1


def test_flags_go_where_they_are_wanted() -> None:
    x, history, output, indices, coefficients = mixed_batch()
    flags = torch.zeros(8, dtype=torch.bool)
    assert sampler_step(x, history, output, indices, coefficients, flags) is flags
    assert flags.all()


def test_an_empty_batch_changes_nothing() -> None:
    x, history, output, indices, coefficients = mixed_batch()
    before = x.clone()
    assert sampler_step(x, history, output, indices[:0], coefficients[:0]).shape == (0,)
    assert torch.equal(x, before)


def test_wrong_blocks_and_state_are_refused() -> None:
    x, history, output, indices, coefficients = mixed_batch()
    with pytest.raises(ValueError, match=r"\[n, 5\] and coefficients \[n, 8\]"):
        sampler_step(x, history, output, indices[:, :4], coefficients)
    with pytest.raises(ValueError, match=r"\[n, 5\] and coefficients \[n, 8\]"):
        sampler_step(x, history, output, indices, coefficients[:, :7])
    with pytest.raises(ValueError, match="float32, got torch.float16 and torch.float32"):
        sampler_step(x.half(), history, output, indices, coefficients)
    with pytest.raises(ValueError, match="float32, got torch.float32 and torch.float64"):
        sampler_step(x, history.double(), output, indices, coefficients)
    with pytest.raises(ValueError, match="x and history must have equal strides"):
        sampler_step(x, history.contiguous(memory_format=torch.channels_last), output, indices, coefficients)


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_mixtures_on_a_gpu(layout: torch.memory_format, dtype: torch.dtype) -> None:
    x, history, output, indices, coefficients = mixed_batch()
    x, history, output = (t.contiguous(memory_format=layout) for t in (x, history, output.to(dtype)))
    on_gpu, history_on_gpu, rows = (t.cuda() for t in (x, history, output))
    sampler_step(x, history, output, indices, coefficients, None, None, Mixtures(SPANS, weights()))
    mixed = Mixtures(SPANS.cuda(), weights().cuda())
    finite = sampler_step(on_gpu, history_on_gpu, rows, indices.cuda(), coefficients.cuda(), mixtures=mixed)
    torch.testing.assert_close(on_gpu.cpu(), x, rtol=0, atol=100 * 14 * 2.0**-24)
    torch.testing.assert_close(history_on_gpu.cpu(), history, rtol=0, atol=100 * 14 * 2.0**-24)
    assert finite.all()


@pytest.mark.gpu
@DTYPES
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_kernel_on_a_gpu(layout: torch.memory_format, dtype: torch.dtype) -> None:
    x, history, output, indices, coefficients = mixed_batch()
    output = output.to(dtype)
    expected_x, expected_history = x.double(), history.double()
    loop(expected_x, expected_history, output, indices, coefficients.double())
    x, history, output = (t.contiguous(memory_format=layout).cuda() for t in (x, history, output))
    pixels = torch.zeros(8, *SHAPE[1:], 3, dtype=torch.uint8, device="cuda")
    places, look = torch.tensor([2, -1, 0, -1, 1, -1, -1, 3]), torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 4)
    pictures = Pictures(pixels, places.cuda(), look.cuda())
    finite = sampler_step(x, history, output, indices.cuda(), coefficients.cuda(), None, pictures)
    torch.testing.assert_close(x.cpu().double(), expected_x, rtol=0, atol=100 * 10 * 2.0**-24)
    torch.testing.assert_close(history.cpu().double(), expected_history, rtol=0, atol=100 * 10 * 2.0**-24)
    assert finite.tolist() == [True] * 8
    for image, place in enumerate(places.tolist()):
        if place >= 0:
            slot = indices[image, 0]
            picture = (look[image, 0] * expected_x[slot] + look[image, 1] * expected_history[slot]).clamp(-1, 1)
            wanted = ((picture + 1) * 127.5).round().permute(1, 2, 0)
            assert (pixels[place].cpu() - wanted).abs().max() <= 1  # float32 may round over where float64 does not
