"""Samples of a network, their Frechet distance, and distances that show copies of training images.

Letters: N images, C x H x W the image, F features, K classes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.checkpoint import ModelConfig
from models.sampling import to_uint8
from training.data import Split, to_float
from training.report import Sampling, draw_grid, generate

BATCH = 100  # images sampled at once
DRAWS = 20  # random halves behind every mean Frechet distance
CHUNK = 4096  # training images compared at once
SEED = 1_000_000  # of the first image; far from the seeds of the sample grids


@dataclass(frozen=True)
class Frechet:
    """Frechet distances in the judge's features.

    The distance grows as the sample shrinks. So the two matched distances use samples of one size on both sides,
    balanced over classes, and are means over DRAWS draws.
    """

    generated: float  # all generated images against all held-out ones
    sample_size: int  # images on each side of the two matched distances
    matched_generated: float  # generated against held-out
    matched_real: float  # held-out against other held-out: what a perfect generator would get
    ratio: float  # of the matched distances; 1 is perfect


@dataclass(frozen=True)
class Neighbours:
    """L2 distances to the nearest training image; pixels in -1..1, squares averaged over channels.

    Copies lie closer to a training image than held-out images do.
    """

    generated_mean: float
    generated_first_percentile: float
    held_out_mean: float
    held_out_first_percentile: float
    suspicious: float  # share of generated images below held_out_first_percentile; 0.01 is expected


def sample_balanced(model: nn.Module, config: ModelConfig, images: int, sampling: Sampling) -> Split:
    """Sample images // K images of every class, as the uint8 that a client would get, with fixed seeds.

    Raises:
        ValueError: fewer than two images a class.
    """
    from tqdm import tqdm

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    labels = torch.arange(config.num_classes).repeat(images_per_class(images, config.num_classes))
    parts = []
    batches = torch.arange(len(labels)).split(BATCH)
    for index in tqdm(batches, desc=config.architecture, unit="batch", mininterval=5):
        x = generate(model, config, labels[index].to(device), (SEED + index).to(device), sampling)
        parts.append(to_uint8(x).cpu())
    return Split(torch.cat(parts), labels)


def images_per_class(images: int, num_classes: int) -> int:
    """images // num_classes.

    Raises:
        ValueError: fewer than two images a class, which have no covariance.
    """
    if images < 2 * num_classes:
        raise ValueError(f"images must be at least {2 * num_classes}, two a class, got {images}")
    return images // num_classes


def compare_features(
    features: Tensor, labels: Tensor, real_features: Tensor, real_labels: Tensor, seed: int = 0
) -> Frechet:
    """features, real_features: [N, F]. seed: of the draws."""
    pairs, size = [], 0
    for drawn, half, other in matched_draws(labels, real_labels, seed):
        real, size = real_features[half.flatten()], half.numel()
        pairs.append(
            (
                frechet_distance(features[drawn.flatten()], real),
                frechet_distance(real_features[other.flatten()], real),
            )
        )
    generated, reference = (sum(column) / DRAWS for column in zip(*pairs, strict=True))
    whole = frechet_distance(features, real_features)
    return Frechet(whole, size, generated, reference, generated / reference)


def matched_draws(labels: Tensor, real_labels: Tensor, seed: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield DRAWS times the indices of generated images, of held-out ones, and of other held-out ones, each [K, n].

    Images with label -1 are left out; the draws of the others stay nearly the same.

    Raises:
        ValueError: a class without two held-out images and a generated one.
    """
    least, real_least = (part[part >= 0].bincount().min() for part in (labels, real_labels))
    per_class = int(min(least, real_least // 2))
    if per_class < 1:
        raise ValueError("an evaluation needs at least two held-out images and a generated one of every class")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(DRAWS):
        half, other = balanced_draw(real_labels, 2 * per_class, generator).split(per_class, dim=1)
        yield balanced_draw(labels, per_class, generator), half, other


def balanced_draw(labels: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    """Indices of `per_class` random images of every class, without repetition: [K, per_class]."""
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels[order]
    return torch.stack([order[shuffled == k][:per_class] for k in range(int(labels.max()) + 1)])


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2) with covariances A, B (Heusel et al. 2017, equation 6).

    tr (A B)^1/2 is the sum of the roots of the eigenvalues of A^1/2 B A^1/2, which is symmetric. a, b: [N, F].
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * mixed).item()


def compare_neighbours(generated: Tensor, held_out: Tensor, train: Tensor) -> Neighbours:
    """All three: [N, C, H, W] uint8."""
    distances, _ = nearest(generated, train)
    held_out_distances, _ = nearest(held_out, train)
    limit = held_out_distances.quantile(0.01)
    return Neighbours(
        generated_mean=distances.mean().item(),
        generated_first_percentile=distances.quantile(0.01).item(),
        held_out_mean=held_out_distances.mean().item(),
        held_out_first_percentile=limit.item(),
        suspicious=(distances < limit).double().mean().item(),
    )


def nearest(images: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to and index of the nearest training image, each [N]."""
    x = to_float(images).flatten(1)
    best = torch.full((len(x),), torch.inf)
    index = torch.zeros(len(x), dtype=torch.long)
    for start in range(0, len(train), CHUNK):
        distance, position = torch.cdist(x, to_float(train[start : start + CHUNK]).flatten(1)).min(1)
        index = torch.where(distance < best, start + position, index)
        best = torch.minimum(best, distance)
    exact = (x - to_float(train[index]).flatten(1)).norm(dim=1)  # cdist rounds: a copy would not be at 0
    return exact / math.sqrt(images.shape[1]), index


def save_neighbours_picture(path: Path, generated: Tensor, train: Tensor, columns: int = 16) -> Path:
    """The generated images that lie closest to a training image, each above that image."""
    distances, index = nearest(generated, train)
    closest = distances.argsort()[:columns]
    pairs = torch.cat([generated[closest], train[index[closest]]])
    draw_grid(path, pairs, ["new", "old"], len(closest))
    return path
