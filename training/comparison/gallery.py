"""Samples that every trained network of a campaign draws from the same noise, kept as a small file for the report.

Letters: N images, n of them with a trajectory, S shown steps, C x H x W the image; C = 1 where the training images
are gray.
"""

import io

import numpy as np
import torch
from torch import Tensor, nn

from models.checkpoint import ModelConfig
from models.sampling import Guidance, sample, to_uint8
from training.data import Data
from training.distances import SEED, sample_balanced
from training.report import Sampling

SAMPLING = Sampling("dpmpp_2m", 20, Guidance(1.0))  # no guidance: what the network learnt, not how it is steered
IMAGES = {True: 200, False: 50}  # gray or not: a colour picture takes 3 kB, ten times as much as a digit
SHOWN_CLASSES = 5  # of the trajectories
SHOWN = (0, 2, 5, 9, 14, 19)  # steps of the trajectories


def draw_gallery(model: nn.Module, config: ModelConfig, data: Data) -> bytes:
    """An npz file: images [N, C, H, W] uint8, labels and seeds [N], and the trajectories of the first images.

    trajectories [n, S, C, H, W] uint8 are what the network takes these images for at the SHOWN steps, one image of
    each of the first classes.
    """
    gray = bool((data.train.images == data.train.images[:, :1]).all())
    drawn = sample_balanced(model, config, IMAGES[gray], SAMPLING)
    seeds = torch.arange(len(drawn)) + SEED
    shown = trajectories(model, config, drawn.labels[:SHOWN_CLASSES], seeds[:SHOWN_CLASSES])  # classes take turns
    arrays = {
        "images": channels(drawn.images, gray),
        "labels": drawn.labels.to(torch.uint8),
        "seeds": seeds,
        "trajectories": channels(shown, gray),
        "trajectory_steps": torch.tensor(SHOWN),
    }
    return packed({name: array.numpy() for name, array in arrays.items()})


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    """An npz file."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    return content.getvalue()


def trajectories(model: nn.Module, config: ModelConfig, labels: Tensor, seeds: Tensor) -> Tensor:
    """The denoised images at the SHOWN steps: [n, S, C, H, W] uint8. labels, seeds: [n]."""
    table = config.table(SAMPLING.sampler, SAMPLING.steps, SAMPLING.spacing)
    shown: list[Tensor] = []

    def watch(step: int, x: Tensor, d: Tensor) -> None:
        if step in SHOWN:
            of_x, of_d = table.preview[step].tolist()
            shown.append(to_uint8(of_x * x + of_d * d).cpu())

    device = next(model.parameters()).device
    shape, null_label = config.image_shape, config.num_classes
    more = {"guidance": SAMPLING.guidance, "null_label": null_label, "watch": watch}
    sample(model, table, labels.to(device), seeds.to(device), shape, **more)
    return torch.stack(shown, dim=1)


def channels(images: Tensor, gray: bool) -> Tensor:
    """Reduce gray images to one channel, their mean over the channels."""
    return images.float().mean(-3, keepdim=True).round().byte() if gray else images
