"""Measurements of a network: how well it denoises by noise level, and how good its samples are.

Letters: N images, C x H x W the image, F features, L noise levels.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoint import ModelConfig
from models.schedule import NUM_TIMESTEPS, SHIFT, NoiseSchedule, Prediction, training_loss
from training.data import Data, Split, take_subset, to_float
from training.distances import CHUNK, compare_features, matched_draws, sample_balanced
from training.judge import Judge
from training.report import Sampling

LEVELS = [(level + 0.5) / 8 for level in range(8)]  # noise times u
BATCH = 100  # images denoised at once
NEIGHBOUR = 3  # k of precision and recall: the k-th neighbour is the radius (Kynkaanniemi et al. 2019, section 3)
COPY = 1 / 3  # limit of distance to the nearest / to the second nearest training image (Yoon et al. 2023)


def measure_loss(model: nn.Module, config: ModelConfig, data: Data, images: int) -> dict[str, Any]:
    """Denoising losses on held-out images and on as many training images; their gap measures memorisation.

    Images, noise and levels are fixed, so that networks can be compared in pairs. images: at most, class-balanced.
    """
    count = min(images, len(data.test), len(data.train))
    parts = {"test": data.test, "train": data.train}
    losses = {name: loss_by_level(model, config, take_subset(split, str(count))) for name, split in parts.items()}
    return {"images": count, "u": LEVELS} | losses


@torch.no_grad()
def loss_by_level(model: nn.Module, config: ModelConfig, split: Split) -> dict[str, Any]:
    """Mean errors over the split.

    x0: L squared errors of the denoised image, pixels in -1..1. training: L values of the loss that training
    minimises. mean: one mean of `training`, levels weighted by how often training draws noise times near them.
    """
    pairs = [torch.stack(list(batch_losses(model, config, split, u))).sum(0) / len(split) for u in LEVELS]
    x0, training = torch.stack(pairs, dim=1)  # [L] each
    return {"x0": x0.tolist(), "training": training.tolist(), "mean": float(training @ level_weights())}


def level_weights() -> Tensor:
    """Share of training's noise times in the slice around each of LEVELS: [L] float64; see sample_noise_times."""
    edges = torch.arange(len(LEVELS) + 1, dtype=torch.float64) / len(LEVELS)
    return torch.special.ndtr(torch.logit(edges) - SHIFT).diff()


def batch_losses(model: nn.Module, config: ModelConfig, split: Split, u: float) -> Iterator[Tensor]:
    """Yield for each batch [2]: the error of x0 and the training loss, summed over its images."""
    schedule, prediction = NoiseSchedule(config.schedule), Prediction(config.prediction)
    device, generator = next(model.parameters()).device, torch.Generator().manual_seed(round(u * NUM_TIMESTEPS))
    for start in range(0, len(split), BATCH):
        batch = split[start : start + BATCH]
        x0 = to_float(batch.images)  # [B, C, H, W]
        eps = torch.randn(x0.shape, generator=generator).to(device)
        x0, times = x0.to(device), torch.full((len(batch),), u, device=device)
        alpha, sigma = schedule.rows(times)
        x = alpha * x0 + sigma * eps
        output = model(x, times * NUM_TIMESTEPS, batch.labels.to(device))
        p, q = prediction.to_x0(float(alpha[0]), float(sigma[0]))
        error = (p * x + q * output - x0).square().mean()
        loss = training_loss(prediction, schedule, output, x0, eps, times)
        yield torch.stack([error, loss]).double().cpu() * len(batch)


def measure_samples(
    model: nn.Module, config: ModelConfig, data: Data, judges: list[Judge], images: int, sampling: Sampling
) -> dict[str, Any]:
    """Draw samples, classes balanced and seeds fixed, and return all their figures; `judges` has one entry a judge.

    For data with rules, also the shares of samples and of held-out images that keep each rule.

    Raises:
        ValueError: fewer than two images a class.
    """
    generated = sample_balanced(model, config, images, sampling)
    graded = {"rules": generated, "rules_real": data.test} if data.rules else {}
    return {
        "sampling": asdict(sampling),
        "samples": len(generated),
        "copies": copied(generated.images, data.train.images),
        "copies_held_out": copied(data.test.images, data.train.images),
        "judges": [judged(generated, data.test, judge) for judge in judges],
        **{name: data.rules(split.images, split.labels) for name, split in graded.items() if data.rules},
    }


def judged(generated: Split, held_out: Split, judge: Judge) -> dict[str, Any]:
    """One judge's figures. Names that end in _real have held-out images in place of the generated ones.

    A perfect generator would reach these. All but the accuracies are means of matched draws, like the Frechet
    distance. Their balanced classes move both KIDs a little below 0.
    """
    features, predicted = judge.grade(generated.images)
    real, real_predicted = judge.grade(held_out.images)
    return {
        "accuracy": (predicted == generated.labels).double().mean().item(),
        "accuracy_real": (real_predicted == held_out.labels).double().mean().item(),
        **graded(features, generated.labels, real, held_out.labels),
    }


def graded(features: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> dict[str, Any]:
    """Distances between sets of features, [N, F] and [M, F]. Images of label -1 are left out."""
    draws = [[index.flatten() for index in draw] for draw in matched_draws(labels, real_labels)]
    scale = real.square().mean().sqrt()  # makes the cubic kernel of KID independent of the features' scale
    ours = mean_figures([(features[drawn] / scale, real[half] / scale) for drawn, half, _ in draws])
    floor = mean_figures([(real[other] / scale, real[half] / scale) for _, half, other in draws])
    return {
        "frechet": asdict(compare_features(features, labels, real, real_labels)),
        "matched": len(draws[0][0]),
        **ours,
        **{f"{name}_real": value for name, value in floor.items()},
    }


def mean_figures(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Means over draws; each pair: features of images to grade and of real ones, [N, F] both."""
    rows = [(kernel_distance(a, b), share_inside(a, b), share_inside(b, a)) for a, b in pairs]
    means = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    return dict(zip(("kid", "precision", "recall"), means, strict=True))


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """KID: the unbiased estimate of the squared maximum mean discrepancy under the kernel (x y / F + 1)^3.

    Binkowski et al. 2018, equations 4 and 5. Its mean is 0 for equal distributions, so it may be negative.
    a, b: [N, F] and [M, F].
    """
    a, b = a.double(), b.double()
    inside = [off_diagonal_mean(cubic(x, x)) for x in (a, b)]
    return (sum(inside) - 2 * cubic(a, b).mean()).item()


def cubic(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def off_diagonal_mean(square: Tensor) -> Tensor:
    n = len(square)
    return (square.sum() - square.trace()) / (n * (n - 1))


def share_inside(points: Tensor, sample: Tensor) -> float:
    """Share of points that lie in any ball around a sample point, with the distance to its NEIGHBOUR-th neighbour.

    Precision for generated points and a real sample, recall the other way round (Kynkaanniemi et al. 2019,
    equations 1 and 2). points, sample: [N, F] and [M, F].
    """
    points, sample = points.double(), sample.double()
    radius = torch.cdist(sample, sample).kthvalue(min(NEIGHBOUR + 1, len(sample)), dim=1).values  # itself is at 0
    return (torch.cdist(points, sample) <= radius).any(1).double().mean().item()


def copied(images: Tensor, train: Tensor) -> float:
    """Share of copies: images whose nearest training image is under COPY times as far as the second nearest.

    Euclidean in pixels (Favero et al. 2025, arXiv 2505.16959). images, train: [N, C, H, W] uint8, two at least.
    """
    x = to_float(images).flatten(1)
    nearest = torch.empty(len(x), 0)
    for part in train.split(CHUNK):
        nearest = torch.cat([nearest, torch.cdist(x, to_float(part).flatten(1))], dim=1)
        nearest = nearest.topk(min(2, nearest.shape[1]), largest=False).values
    return (nearest[:, 0] < COPY * nearest[:, -1]).double().mean().item()
