"""One denoising step for any mix of requests: guidance, prediction -> denoised, clamp, multistep update, noise.

A sampler is a table (models/samplers.py), so images at different steps of different samplers share this call:

    M  = M_uncond + w * (M_cond - M_uncond)
    d  = p * x + q * M                            clamped to [-1, 1] where the row asks for it
    x' = a * x + b * d + c * d_prev + s * z

Letters: S slots, n images of this step, R forward rows, C x H x W the image, E = C * H * W.
"""

import torch
from torch import Tensor

from kernels.backend import image_layout, tl, triton, use_triton
from kernels.philox import normal, normal_noise
from kernels.vector import load_wide

# Columns of the two coefficient blocks that the host writes each step.
SLOT, COND_ROW, UNCOND_ROW, SEED, NOISE_STEP = range(5)
W, P, Q, A, B, C, S, CLAMP = range(8)
NUM_INDICES, NUM_COEFFICIENTS = 5, 8
MAX_REGISTERS = 64  # half of a multiprocessor's warps stay resident
BLOCK = 1024  # elements a pass


def sampler_step_reference(
    x: Tensor, history: Tensor, output: Tensor, indices: Tensor, coefficients: Tensor
) -> Tensor:
    """All arithmetic in float32, whatever the dtype of the network's output."""
    slots = indices[:, SLOT]
    w, p, q, a, b, c, s, clamp = coefficients[:, :, None, None, None].unbind(1)  # each [n, 1, 1, 1]
    cond = output[indices[:, COND_ROW]].float()  # [n, C, H, W]
    uncond = output[indices[:, UNCOND_ROW]].float()
    latent, previous = x[slots], history[slots]
    denoised = p * latent + q * (uncond + w * (cond - uncond))
    finite = denoised.isfinite()  # before the clamp, which would make a plausible image of an infinite prediction
    denoised = torch.where(clamp > 0, denoised.clamp(-1, 1), denoised)
    # An unused history may hold another request's non-finite numbers, and 0 * nan is nan.
    remembered = torch.where(c != 0, c * previous, torch.zeros_like(previous))
    updated = a * latent + b * denoised + remembered + _noise(s, indices, latent)
    x[slots], history[slots] = updated, denoised
    return (finite & updated.isfinite()).flatten(1).all(dim=1)


def _noise(s: Tensor, indices: Tensor, like: Tensor) -> Tensor:
    """s * z for the rows that ask for noise; Philox costs more than the update, so the others skip it."""
    noise = torch.zeros_like(like)  # [n, C, H, W]
    rows = s.flatten().nonzero().flatten()
    if len(rows):
        z = normal(indices[rows, SEED], indices[rows, NOISE_STEP], like[0].numel())
        noise[rows] = s[rows] * z.view(len(rows), *like.shape[1:])
    return noise


@triton.jit
def _sampler_step_kernel(
    x,  # [S, E], the elements of all three in the order in which they lie in memory
    history,  # [S, E]
    output,  # [R, E]
    indices,  # [n, 5] int64
    coefficients,  # [n, 8]
    finite,  # [n]
    E: tl.constexpr,
    C: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One image a program, all its elements one after the other: its flag then needs no atomic, and no second
    launch.
    """
    image = tl.program_id(0).to(tl.int64)
    index, row = indices + image * 5, coefficients + image * 8
    slot, cond_row, uncond_row = tl.load(index), tl.load(index + 1), tl.load(index + 2)
    seed, noise_step = tl.load(index + 3), tl.load(index + 4)
    w, p, q, a = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    b, c, s, clamp = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    guided = uncond_row != cond_row
    remembers = tl.where(c != 0, 1, 0) == 1  # the interpreter cannot join c != 0 with a mask
    sound = tl.arange(0, BLOCK) >= 0
    for start in range(0, E, BLOCK):
        place = start + tl.arange(0, BLOCK)
        here = place < E
        fresh = tl.zeros([BLOCK], tl.float32)
        if s != 0:  # Philox costs more than the rest together
            element = (place % C) * (E // C) + place // C if CHANNELS_LAST else place
            fresh = s * normal_noise(seed, noise_step, element)
        latent = tl.load(x + slot * E + place, mask=here, other=0.0)
        # What a row does not use is not read: it costs bandwidth, and may hold NaN.
        cond = load_wide(output + cond_row * E, start, E, True, BLOCK)
        uncond = load_wide(output + uncond_row * E, start, E, guided, BLOCK)
        previous = tl.load(history + slot * E + place, mask=here & remembers, other=0.0)
        denoised = p * latent + q * tl.where(guided, uncond + w * (cond - uncond), cond)
        sound &= tl.abs(denoised) < float("inf")  # NaN is not below infinity either
        clamped = tl.minimum(tl.maximum(denoised, -1.0), 1.0)
        denoised = tl.where(clamp > 0, clamped, denoised)
        updated = a * latent + b * denoised + c * previous + fresh
        sound &= tl.abs(updated) < float("inf")
        tl.store(x + slot * E + place, updated, mask=here)
        tl.store(history + slot * E + place, denoised, mask=here)
    tl.store(finite + image, tl.min(sound.to(tl.int32), 0) == 1)


def _launch(x: Tensor, history: Tensor, output: Tensor, indices: Tensor, coefficients: Tensor) -> Tensor:
    C, E = x.shape[1], x[0].numel()
    layout = image_layout(x)
    finite = torch.empty(len(indices), dtype=torch.bool, device=x.device)
    if len(indices) == 0:
        return finite
    _sampler_step_kernel[(len(indices),)](
        x,
        history,
        output.contiguous(memory_format=layout),
        indices.contiguous(),
        coefficients.contiguous(),
        finite,
        E=E,
        C=C,
        CHANNELS_LAST=layout == torch.channels_last,
        BLOCK=BLOCK,
        num_warps=4,
        maxnreg=MAX_REGISTERS,
    )
    return finite


def sampler_step(x: Tensor, history: Tensor, output: Tensor, indices: Tensor, coefficients: Tensor) -> Tensor:
    """Advance n images by one step, in place.

    Args:
        x: [S, C, H, W] float32 latents by slot, contiguous or channels_last; the images' slots are overwritten.
        history: [S, C, H, W] float32 in the layout of x, the previous step's d by slot; overwritten likewise.
        output: [R, C, H, W] network output, any float dtype; in another layout than x it is copied.
        indices: [n, 5] int64: slot, conditional row, unconditional row (the conditional one again where
            there is no guidance), seed, noise step.
        coefficients: [n, 8] float32: w, p, q, a, b, c, s, clamp (0 or 1).

    Returns:
        [n] bool, whether every number of the image and of its unclamped denoised image is finite.

    Raises:
        ValueError: a block has the wrong width, or the state is not float32 or not two whole tensors alike.
    """
    if indices.shape[1] != NUM_INDICES or coefficients.shape[1] != NUM_COEFFICIENTS:
        raise ValueError(f"blocks must be [n, {NUM_INDICES}] and [n, {NUM_COEFFICIENTS}]")
    if x.dtype != torch.float32 or history.dtype != torch.float32:
        raise ValueError(f"sampler state must be float32, got {x.dtype} and {history.dtype}")
    if x.stride() != history.stride():
        raise ValueError(f"x and history must lie alike, got strides {x.stride()} and {history.stride()}")
    step = _launch if use_triton(x, output) else sampler_step_reference
    return step(x, history, output, indices, coefficients)
