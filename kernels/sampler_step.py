"""One denoising step for any mix of requests: guidance, prediction -> denoised, clamp, multistep update, noise.

A sampler is a table (models/samplers.py), so images at different steps of different samplers share this call:

    M  = M_uncond + w * (M_cond - M_uncond)
    d  = p * x + q * M                            clamped to [-1, 1] where the row asks for it
    x' = a * x + b * d + c * d_prev + s * z

Letters: S slots, n images of this step, R forward rows, C x H x W the image.
"""

import torch
from torch import Tensor

from kernels.philox import normal

# Columns of the two coefficient blocks that the host writes each step.
SLOT, COND_ROW, UNCOND_ROW, SEED, NOISE_STEP = range(5)
W, P, Q, A, B, C, S, CLAMP = range(8)
NUM_INDICES, NUM_COEFFICIENTS = 5, 8


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


def sampler_step(x: Tensor, history: Tensor, output: Tensor, indices: Tensor, coefficients: Tensor) -> Tensor:
    """Advance n images by one step, in place.

    Args:
        x: [S, C, H, W] float32 latents by slot; the images' slots are overwritten.
        history: [S, C, H, W] float32, the previous step's d by slot; overwritten likewise.
        output: [R, C, H, W] network output, any float dtype.
        indices: [n, 5] int64: slot, conditional row, unconditional row (the conditional one again where
            there is no guidance), seed, noise step.
        coefficients: [n, 8] float32: w, p, q, a, b, c, s, clamp (0 or 1).

    Returns:
        [n] bool, whether every number of the image and of its unclamped denoised image is finite.

    Raises:
        ValueError: a block has the wrong width or the state is not float32.
    """
    if indices.shape[1] != NUM_INDICES or coefficients.shape[1] != NUM_COEFFICIENTS:
        raise ValueError(f"blocks must be [n, {NUM_INDICES}] and [n, {NUM_COEFFICIENTS}]")
    if x.dtype != torch.float32 or history.dtype != torch.float32:
        raise ValueError(f"sampler state must be float32, got {x.dtype} and {history.dtype}")
    return sampler_step_reference(x, history, output, indices, coefficients)
