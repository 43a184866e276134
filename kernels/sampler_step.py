"""One denoising step for images of any requests: guidance, denoised image, clamp, multistep update, noise.

A sampler is a table of coefficients (models/samplers.py), so images at different steps of different samplers share
one call:

    M  = M_uncond + w * (M_cond - M_uncond)
    d  = p * x + q * M                            clamped to [-1, 1] where clamp is 1
    x' = a * x + b * d + c * d_prev + s * z

Some images are of a mixture of classes, with a row for each class k and weights g that sum up to 1. Then

    M_cond = M_0 + sum of g_k * (M_k - M_0) over the further classes     which is the sum of g_k * M_k over all

so an image of one class has the same bits as in a step without mixtures.

Some images leave the device with the step, finished or as a preview. Their pictures are written while x' and d are
in registers, which saves a launch and its reads.

Letters: n images of this step, R rows (model evaluations); the image is C x H x W, and E = C * H * W are its
elements. The lower-case letters w, p, q, a, b, c, s are the coefficients of these equations.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.backend import image_layout, tl, triton, use_triton
from kernels.philox import normal, normal_noise
from kernels.wide_access import load_wide

# Columns of the blocks `indices` and `coefficients`, which the host writes each step.
SLOT, COND_ROW, UNCOND_ROW, SEED, NOISE_STEP = (tl.constexpr(column) for column in range(5))
W, P, Q, A, B, C, S, CLAMP = (tl.constexpr(column) for column in range(8))
NUM_INDICES, NUM_COEFFICIENTS = 5, 8
# With 64 registers, half of a multiprocessor's warps are resident. A float32 output would spill 8 bytes on sm_80.
MAX_REGISTERS, MAX_REGISTERS_FLOAT32 = 64, 72
BLOCK = 1024  # elements a pass
TO_INTEGER = tl.constexpr(1.5 * 2.0**23)  # added and taken away again, it rounds a small float32 to even


class Pictures(NamedTuple):
    """The images that leave the device with a step.

    pixels: [n, H, W, C] uint8, written at the places of those images only.
    places: [n] int64, where in pixels each image of the step goes, or -1.
    preview: [n, 2] float32; the picture is preview @ (x', d), clamped to [-1, 1] and scaled to 0 .. 255.
    """

    pixels: Tensor
    places: Tensor
    preview: Tensor


class Mixtures(NamedTuple):
    """Further classes of the images of a step.

    spans: [n, 2] int64, the first row of an image's further classes and the one behind the last; equal for none.
    weights: [R] float32, read for those rows only.
    """

    spans: Tensor
    weights: Tensor


def sampler_step_reference(
    x: Tensor,
    history: Tensor,
    output: Tensor,
    indices: Tensor,
    coefficients: Tensor,
    finite: Tensor,
    pictures: Pictures | None = None,
    mixtures: Mixtures | None = None,
) -> None:
    """All arithmetic in float32 for every dtype of the network's output.

    A service on a CPU runs this, so each part is computed for only those images that need it.
    """
    slots, cond_rows, uncond_rows, seeds, noise_steps = indices.unbind(1)  # each [n]
    w, p, q, a, b, c, s, clamp = coefficients[:, :, None, None, None].unbind(1)  # each [n, 1, 1, 1]
    cond = output.index_select(0, cond_rows).float()  # [n, C, H, W]
    predicted = cond if mixtures is None else _mixed(output, cond, mixtures)
    if len(guided := _places(uncond_rows != cond_rows)):
        uncond = output.index_select(0, uncond_rows[guided]).float()
        predicted = predicted.index_copy(0, guided, uncond + w[guided] * (predicted[guided] - uncond))
    latent = x.index_select(0, slots)
    denoised = p * latent + q * predicted
    largest = denoised.abs().amax((1, 2, 3))  # [n]; NaN where there is one. The clamp turns infinity into 1
    bound = torch.where(clamp > 0, 1.0, math.inf)
    denoised = denoised.clamp(-bound, bound)
    updated = a * latent + b * denoised
    if len(multistep := _places(c != 0)):  # the history of others may hold NaN of the request before
        updated.index_add_(0, multistep, c[multistep] * history[slots[multistep]])
    if len(noisy := _places(s != 0)):  # Philox costs more than all the rest
        z = normal(seeds[noisy], noise_steps[noisy], latent[0].numel())
        updated.index_add_(0, noisy, s[noisy] * z.view(-1, *latent.shape[1:]))
    x.index_copy_(0, slots, updated)
    history.index_copy_(0, slots, denoised)
    torch.lt(torch.maximum(largest, updated.abs().amax((1, 2, 3))), math.inf, out=finite)
    if pictures is not None and len(chosen := _places(pictures.places >= 0)):
        of_x, of_d = pictures.preview[chosen, :, None, None, None].unbind(1)
        picture = of_x * updated[chosen] + of_d * denoised[chosen]
        bytes_ = ((picture.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        pictures.pixels[pictures.places[chosen]] = bytes_.permute(0, 2, 3, 1)


def _places(chosen: Tensor) -> Tensor:
    """Where it is true: of [n] or [n, 1, 1, 1] bool, [m] int64."""
    return chosen.flatten().nonzero().flatten()


def _mixed(output: Tensor, first: Tensor, mixtures: Mixtures) -> Tensor:
    """M_cond [n, C, H, W] from M_0, one further class of all images after the other."""
    mixed, (rows, ends) = first, mixtures.spans.unbind(1)
    while len(chosen := _places(rows < ends)):
        row = rows[chosen]
        weights = mixtures.weights[row, None, None, None]
        mixed = mixed.index_add(0, chosen, weights * (output[row].float() - first[chosen]))
        rows = rows + 1
    return mixed


@triton.jit
def _noise_block(
    s, seed, noise_step, offs, E: tl.constexpr, NUM_CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr
):
    """s * z of elements `offs` in memory; z is drawn by the element's number in [C, H, W]."""
    noise = tl.zeros(offs.shape, tl.float32)
    if s != 0:  # Philox costs more than all the rest
        PLANE: tl.constexpr = E // NUM_CHANNELS
        element = (offs % NUM_CHANNELS) * PLANE + offs // NUM_CHANNELS if CHANNELS_LAST else offs
        noise = s * normal_noise(seed, noise_step, element)
    return noise


@triton.jit
def _mix(output, cond, span, weights, start, E: tl.constexpr, BLOCK: tl.constexpr):
    """M_cond of elements `start` .. start + BLOCK from M_0 and the rows of the further classes."""
    mixed = cond
    for row in range(tl.load(span), tl.load(span + 1)):
        mixed += tl.load(weights + row) * (load_wide(output + row * E, start, E, True, BLOCK) - cond)
    return mixed


@triton.jit
def _store_picture(
    pixels, place, picture, offs, E: tl.constexpr, NUM_CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr
):
    """Elements `offs` in memory as bytes [H, W, C], rounded as models.sampling.to_uint8 does."""
    scaled = (tl.minimum(tl.maximum(picture, -1.0), 1.0) + 1.0) * 127.5
    rounded = ((scaled + TO_INTEGER) - TO_INTEGER).to(tl.int32).to(tl.uint8)
    PLANE: tl.constexpr = E // NUM_CHANNELS
    byte = offs if CHANNELS_LAST or NUM_CHANNELS == 1 else (offs % PLANE) * NUM_CHANNELS + offs // PLANE
    tl.store(pixels + place * E + byte, rounded, mask=(offs < E) & (place >= 0))


@triton.jit
def _sampler_step_kernel(
    x,  # [slots, E]; x, history and output have their elements in the same memory order
    history,  # [slots, E]
    output,  # [R, E]
    indices,  # [n, 5] int64
    coefficients,  # [n, 8]
    finite,  # [n]
    pixels,  # [n, H, W, C] or None
    places,  # [n]
    preview,  # [n, 2]
    spans,  # [n, 2] int64 or None
    weights,  # [R]
    E: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    NUM_INDICES: tl.constexpr,
    NUM_COEFFICIENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program updates one image, block after block, so that it can write the image's flag without atomics."""
    image = tl.program_id(0).to(tl.int64)
    index, coef = indices + image * NUM_INDICES, coefficients + image * NUM_COEFFICIENTS
    slot, cond_row, uncond_row = tl.load(index + SLOT), tl.load(index + COND_ROW), tl.load(index + UNCOND_ROW)
    seed, noise_step = tl.load(index + SEED), tl.load(index + NOISE_STEP)
    w, p, q, a = tl.load(coef + W), tl.load(coef + P), tl.load(coef + Q), tl.load(coef + A)
    b, c, s, clamp = tl.load(coef + B), tl.load(coef + C), tl.load(coef + S), tl.load(coef + CLAMP)
    guided = uncond_row != cond_row
    place, of_x, of_d = -1, 0.0, 0.0
    if pixels is not None:
        place, of_x, of_d = tl.load(places + image), tl.load(preview + 2 * image), tl.load(preview + 2 * image + 1)
    multistep = tl.where(c != 0, 1, 0) == 1  # the interpreter cannot combine c != 0 with a mask
    all_finite = tl.arange(0, BLOCK) >= 0
    for start in range(0, E, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        mask = offs < E
        # The network's output comes first: beside noise and latent, the rows of a mixture would spill registers.
        # Unused inputs are not read: that saves bandwidth, and they may hold NaN.
        cond = load_wide(output + cond_row * E, start, E, True, BLOCK)
        if spans is not None:
            cond = _mix(output, cond, spans + 2 * image, weights, start, E, BLOCK)
        uncond = load_wide(output + uncond_row * E, start, E, guided, BLOCK)
        noise = _noise_block(s, seed, noise_step, offs, E, NUM_CHANNELS, CHANNELS_LAST)
        latent = tl.load(x + slot * E + offs, mask=mask, other=0.0)
        previous = tl.load(history + slot * E + offs, mask=mask & multistep, other=0.0)
        denoised = p * latent + q * tl.where(guided, uncond + w * (cond - uncond), cond)
        all_finite &= tl.abs(denoised) < float("inf")  # false for NaN, too
        denoised = tl.where(clamp > 0, tl.minimum(tl.maximum(denoised, -1.0), 1.0), denoised)
        updated = a * latent + b * denoised + c * previous + noise
        all_finite &= tl.abs(updated) < float("inf")
        tl.store(x + slot * E + offs, updated, mask=mask)
        tl.store(history + slot * E + offs, denoised, mask=mask)
        if pixels is not None:
            picture = of_x * updated + of_d * denoised
            _store_picture(pixels, place, picture, offs, E, NUM_CHANNELS, CHANNELS_LAST)
    tl.store(finite + image, tl.min(all_finite.to(tl.int32), 0) == 1)


def _launch(
    x: Tensor,
    history: Tensor,
    output: Tensor,
    indices: Tensor,
    coefficients: Tensor,
    finite: Tensor,
    pictures: Pictures | None = None,
    mixtures: Mixtures | None = None,
) -> None:
    layout = image_layout(x)
    if len(indices) == 0:
        return
    _sampler_step_kernel[(len(indices),)](
        x,
        history,
        output.contiguous(memory_format=layout),
        indices.contiguous(),
        coefficients.contiguous(),
        finite,
        *(pictures or (None, None, None)),
        *(mixtures or (None, None)),
        E=x[0].numel(),
        NUM_CHANNELS=x.shape[1],
        CHANNELS_LAST=layout == torch.channels_last,
        NUM_INDICES=NUM_INDICES,
        NUM_COEFFICIENTS=NUM_COEFFICIENTS,
        BLOCK=BLOCK,
        num_warps=4,
        maxnreg=MAX_REGISTERS_FLOAT32 if output.dtype == torch.float32 else MAX_REGISTERS,
    )


def sampler_step(
    x: Tensor,
    history: Tensor,
    output: Tensor,
    indices: Tensor,
    coefficients: Tensor,
    finite: Tensor | None = None,
    pictures: Pictures | None = None,
    mixtures: Mixtures | None = None,
) -> Tensor:
    """Advance n images by one step, in place.

    Args:
        x: [slots, C, H, W] float32 latents, contiguous or channels_last; the images' slots are overwritten.
        history: [slots, C, H, W] float32 in the layout of x, d of the previous step; overwritten in the same slots.
        output: [R, C, H, W], what the network returned, any float dtype; copied if its layout is not that of x.
        indices: [n, 5] int64: slot, row of the conditional output, row of the unconditional output (the same row
            if there is no guidance), seed, noise step.
        coefficients: [n, 8] float32: w, p, q, a, b, c, s, clamp (0 or 1).
        finite: [n] bool, where the flags go; default: a new tensor. pictures: what else leaves the device.
        mixtures: further classes of the images.

    Returns:
        [n] bool: whether x' and the unclamped d of the image are finite.

    Raises:
        ValueError: a block of the wrong width, x or history not float32, of different strides or unknown layout.
    """
    if indices.shape[1] != NUM_INDICES or coefficients.shape[1] != NUM_COEFFICIENTS:
        got = f"{tuple(indices.shape)} and {tuple(coefficients.shape)}"
        raise ValueError(f"indices must be [n, {NUM_INDICES}] and coefficients [n, {NUM_COEFFICIENTS}], got {got}")
    if x.dtype != torch.float32 or history.dtype != torch.float32:
        raise ValueError(f"sampler state must be float32, got {x.dtype} and {history.dtype}")
    if x.stride() != history.stride():
        raise ValueError(f"x and history must have equal strides, got {x.stride()} and {history.stride()}")
    if finite is None:
        finite = torch.empty(len(indices), dtype=torch.bool, device=x.device)
    step = _launch if use_triton(x, output) else sampler_step_reference
    step(x, history, output, indices, coefficients, finite, pictures, mixtures)
    return finite
