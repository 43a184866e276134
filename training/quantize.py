"""Calibrate int8 quantization: measure the ranges of a checkpoint's activations on its training data.

Letters: B batch, C x H x W the image.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from models.checkpoint import ModelConfig, load_checkpoint
from models.graph import core, import_openvino, trace
from models.quantization import Range, Ranges, products, write_ranges
from models.schedule import NUM_TIMESTEPS, NoiseSchedule
from training.config import LATER, TrainConfig
from training.data import DataError, Split, to_float
from training.train import load_training_data

if TYPE_CHECKING:
    import openvino

IMAGES = 512
BATCH = 16
SEED = 0
# Share of the images that a range covers. Outliers reach twice as far as most images, and would make the levels
# coarse. With 0.95 a forward of the shipped DiT is 40 % closer to float32 than with 1.0, and one of the UNet 19 %.
SHARE = 0.95


def quantize_checkpoint(folder: Path, images: int = IMAGES, data_path: Path | None = None) -> Path:
    """Measure the ranges of a checkpoint and write them into its folder; returns the file.

    Args:
        images: of the training data, each at a noise level of its own.
        data_path: of the training data, if they are cifar10 or a folder.

    Raises:
        CheckpointError: a checkpoint that cannot be read or exported.
        DataError: its training data is not known or not there.
        ValueError: fewer than one image.
    """
    if images < 1:
        raise ValueError(f"images must be at least 1, got {images}")
    network, config = load_checkpoint(folder)
    split = training_images(config, data_path)
    ranges = measure(trace(network, config), batches(split, config, images))
    return write_ranges(folder, ranges, config.sha256)


def training_images(config: ModelConfig, data_path: Path | None = None) -> Split:
    """The training images of the checkpoint. Raises DataError."""
    recipe = config.training.get("recipe")
    if not isinstance(recipe, dict) or "data" not in recipe:
        raise DataError("the checkpoint does not say what it was trained on: its config has no training recipe")
    given = {name: value for name, value in (LATER | recipe).items() if name in ("data", "subset", "hold_out")}
    arguments = {"image_channels": config.image_shape[0], "image_size": config.image_shape[1]}
    return load_training_data(TrainConfig(arguments=arguments, data_path=data_path, **given)).train


def batches(split: Split, config: ModelConfig, images: int) -> Iterator[tuple[Tensor, ...]]:
    """The inputs x [B, C, H, W], t [B], y [B] and perhaps r and w of forwards over `images` rows.

    Noise levels lie evenly over the whole scale, because activations drift with them. Labels are those of the
    images, and the null class of guidance in every fourth row.
    """
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(images, generator=generator)  # so that every batch has all noise levels
    u = (torch.arange(images) + 0.5)[order] / images  # [images]
    chosen = torch.randperm(len(split), generator=generator).repeat(-(-images // len(split)))[:images]
    y = torch.where(torch.arange(images) % 4 == 0, config.num_classes, split.labels[chosen])
    r = u * torch.rand(images, generator=generator)
    low, high = config.guidance_range or (1.0, 1.0)
    w = low + (high - low) * torch.rand(images, generator=generator)
    for index in torch.arange(images).split(BATCH):
        alpha, sigma = NoiseSchedule(config.schedule).rows(u[index])
        x0 = to_float(split.images[chosen[index]])
        x = alpha * x0 + sigma * torch.randn(x0.shape, generator=generator)
        others = (NUM_TIMESTEPS * r[index], w[index]) if config.is_few_step else ()
        yield x, NUM_TIMESTEPS * u[index], y[index], *others


def measure(model: "openvino.Model", inputs: Iterator[tuple[Tensor, ...]]) -> Ranges:
    """Ranges of all inputs of int8 products: SHARE of the images do not go below it, and SHARE not above."""
    openvino = import_openvino()
    op, known = openvino.opset13, products(model)
    ends = []
    for part in (part for product in known for part in product.parts):
        pixels = op.constant(np.arange(1, len(part.get_partial_shape())))
        ends += [op.result(reduce(part, pixels)) for reduce in (op.reduce_min, op.reduce_max)]
    watched = openvino.Model(ends, model.get_parameters(), "ranges")
    compiled = core().compile_model(watched, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    seen = [np.stack(list(compiled([tensor.numpy() for tensor in batch]).values())) for batch in inputs]
    lows, highs = (np.concatenate(seen, axis=1)[first::2] for first in (0, 1))  # [parts, images]
    pairs = iter(zip(np.quantile(lows, 1 - SHARE, axis=1), np.quantile(highs, SHARE, axis=1), strict=True))
    return {product.name: [_with_zero(*map(float, next(pairs))) for _ in product.parts] for product in known}


def _with_zero(low: float, high: float) -> Range:
    """Extend a range so that it contains zero; one that is always zero becomes 0..1."""
    return min(low, 0.0), max(high, 0.0) or float(low == 0)
