"""Probe a trained denoiser: the analytic denoiser it resembles, its sensitivity field, its shift equivariance.

The network predicts x0 for the null class, because the denoisers it is compared with do not use the class either.
Inputs are held-out images under fixed noise, the same for all networks.

Other causes of a difference between two networks than attention or convolutions:

- Convolutions pad with zeros, so a UNet sees where the border is. GroupNorm takes its statistics from all pixels:
  each of its outputs depends on the whole image, a little, however small the convolutions are.
- A DiT's position embeddings break the symmetry under shifts, and so does its patch: within a patch no shift is
  free, and its linear layers mix all pixels of one.
- A UNet that halves the image three times can only be exact for shifts by 8 pixels.
- The data are not symmetric themselves: digits lie in the middle. shift_errors_wiener is what the best linear
  answer to these data gives. Digits have a border of 2 empty pixels at least, seven in eight have 4, and the noise
  is white. So a shift in a circle makes another proper input.

Letters: L noise levels, B images, C x H x W the image.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.checkpoint import ModelConfig
from models.sampling import to_uint8
from models.schedule import NUM_TIMESTEPS, NoiseSchedule, Prediction
from training.comparison.denoisers import Denoisers, r2, spread
from training.data import Data, take_subset, to_float
from training.measure import LEVELS

IMAGES = 40
OUTPUTS = slice(None, None, 2)  # images whose outputs are stored
FIELDS = slice(None, None, 4)  # images whose sensitivity is computed
EXAMPLES = slice(None, None, 20)  # images whose outputs by the analytic denoisers are stored
PATCHES = (1, 3, 5, 7, 9, 13, 17)  # sides of the local denoiser's patch
SHIFTS = (1, 2, 4)  # pixels
SQUARE = 4  # side in pixels of the middle square whose reach is averaged: it has each position of a DiT's patch

Denoise = Callable[[Tensor], Tensor]


def probe(model: nn.Module, config: ModelConfig, data: Data) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Figures, L numbers each, and arrays.

    r2: see denoisers.r2; local with the patch that fits best, `patch`. error: squared, of the denoised pixels.
    shift_error: see shift_error, mean over 1 and 2 pixels. reach: mean distance in pixels, weighted by sensitivity.
    """
    x0 = to_float(take_subset(data.test, str(min(IMAGES, len(data.test)))).images)
    levels = [noise_level(config, u) for u in LEVELS]
    noisy = [alpha * x0 + sigma * fixed_noise(x0, u) for u, (alpha, sigma) in zip(LEVELS, levels, strict=True)]
    networks = [network_denoiser(model, config, u) for u in LEVELS]
    with torch.no_grad():
        outputs = [denoise(x) for denoise, x in zip(networks, noisy, strict=True)]
        denoisers = Denoisers(to_float(data.train.images))
        known, patch = references(denoisers, levels, noisy, outputs)
        shifts = shift_errors(networks, noisy)
        wiener = [lambda x, level=level: denoisers.wiener(x, *level) for level in levels]
        shifts_wiener = shift_errors(wiener, noisy)
    pairs = list(zip(networks, noisy, strict=True))
    fields, reach = zip(*(sensitivity(denoise, x[FIELDS]) for denoise, x in pairs), strict=True)
    figures = {
        "images": len(x0),
        "u": LEVELS,
        "r2": {name: [r2(*pair) for pair in zip(outputs, other, strict=True)] for name, other in known.items()},
        "patch": patch,
        "error": {
            name: [float((output - x0).square().mean()) for output in other]
            for name, other in ({"network": outputs} | known).items()
        },
        "shift_error": np.mean([shifts["1"], shifts["2"]], axis=0).tolist(),
        "shift_errors": shifts,
        "shift_errors_wiener": shifts_wiener,
        "reach": list(reach),
    }
    examples = {"noisy": noisy, **known}
    arrays = {name: stored([x[EXAMPLES] for x in xs], denoisers.gray) for name, xs in examples.items()}
    arrays["outputs"] = stored([x[OUTPUTS] for x in outputs], denoisers.gray)
    return figures, arrays | {"sensitivity": torch.stack(fields).half().numpy()}


def noise_level(config: ModelConfig, u: float) -> tuple[float, float]:
    alpha, sigma = NoiseSchedule(config.schedule).rows(torch.tensor([u]))
    return float(alpha), float(sigma)


def fixed_noise(x0: Tensor, u: float) -> Tensor:
    return torch.randn(x0.shape, generator=torch.Generator().manual_seed(round(u * NUM_TIMESTEPS)))


def network_denoiser(model: nn.Module, config: ModelConfig, u: float) -> Denoise:
    """x [B, C, H, W] to the image that the network predicts for the null class."""
    p, q = Prediction(config.prediction).to_x0(*noise_level(config, u))

    def denoise(x: Tensor) -> Tensor:
        times, null = torch.full((len(x),), u * NUM_TIMESTEPS), torch.full((len(x),), config.num_classes)
        return p * x + q * model(x, times, null)

    return denoise


def references(
    denoisers: Denoisers, levels: list[tuple[float, float]], noisy: list[Tensor], outputs: list[Tensor]
) -> tuple[dict[str, list[Tensor]], list[int]]:
    """Answers of the denoisers, L of [B, C, H, W] each, and the patch of the local one by level.

    The patch is chosen by the r2 that it gives: one of seven numbers, from 40,000 pixels.
    """
    pairs = list(zip(noisy, levels, strict=True))
    known = {
        "optimal": [denoisers.optimal(x, *level) for x, level in pairs],
        "wiener": [denoisers.wiener(x, *level) for x, level in pairs],
    }
    batch, count = torch.cat(noisy), len(noisy[0])
    alpha, sigma = torch.tensor(levels).repeat_interleave(count, dim=0).unbind(1)  # [L * B] each
    answers = [denoisers.local(batch, alpha, sigma, size).split(count) for size in PATCHES]
    fits = torch.tensor([[r2(*pair) for pair in zip(outputs, answer, strict=True)] for answer in answers])
    best = fits.argmax(0).tolist()
    known["local"] = [answers[size][level] for level, size in enumerate(best)]
    return known, [PATCHES[size] for size in best]


def shift_errors(denoise: list[Denoise], noisy: list[Tensor]) -> dict[str, list[float]]:
    """By pixels, L numbers each."""
    pairs = list(zip(denoise, noisy, strict=True))
    return {str(pixels): [shift_error(one, x, pixels) for one, x in pairs] for pixels in SHIFTS}


def shift_error(denoise: Denoise, x: Tensor, pixels: int) -> float:
    """sum |D(shifted x) - shifted D(x)|^2 / sum |D(x) - mean|^2, see r2; mean over the four directions.

    Shifts are circular. 0: the network is equivariant to them.
    """
    output = denoise(x)
    total = torch.zeros(())
    for axis, by in product((2, 3), (pixels, -pixels)):
        total += (denoise(x.roll(by, axis)) - output.roll(by, axis)).square().sum() / spread(output)
    return float(total / 4)


def sensitivity(denoise: Denoise, x: Tensor) -> tuple[Tensor, float]:
    """Rows of the Jacobian: how much an output pixel changes with each input pixel, all channels alike.

    Returns the mean absolute value over the images for the output pixel (H / 2, W / 2), [H, W]; and the mean
    distance to the input pixels weighted by it, mean over the output pixels in the middle.
    """
    height, width = x.shape[2:]
    fields = dict(pixel_fields(denoise, x, height // 2, width // 2))
    reaches = [weighted_distance(field, *pixel) for pixel, field in fields.items()]
    return fields[height // 2, width // 2], sum(reaches) / len(reaches)


def pixel_fields(denoise: Denoise, x: Tensor, row: int, column: int) -> Iterator[tuple[tuple[int, int], Tensor]]:
    x = x.clone().requires_grad_()
    output = denoise(x).mean(1)  # [B, H, W]
    half = range(-(SQUARE // 2), SQUARE // 2)
    for h, w in product((row + i for i in half), (column + i for i in half)):
        (gradient,) = torch.autograd.grad(output[:, h, w].sum(), x, retain_graph=True)
        yield (h, w), gradient.sum(1).abs().mean(0)  # [H, W]


def weighted_distance(field: Tensor, row: int, column: int) -> float:
    """Mean distance in pixels to (row, column), weighted by field [H, W]; 0 if the field is zero."""
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in field.shape), indexing="ij")
    distance = torch.hypot((rows - row).float(), (columns - column).float())
    return float((field * distance).sum() / field.sum().clamp(min=1e-30))


def stored(images: list[Tensor], gray: bool) -> np.ndarray:
    """[L, B, C, H, W] uint8, C = 1 where training is gray."""
    parts = [x.mean(1, keepdim=True) if gray else x for x in images]
    return torch.stack([to_uint8(x) for x in parts]).numpy()
