"""Intervals of 95 % for the figures of one checkpoint.

They cover the variation of another measurement of the same weights: other samples, other held-out pictures, and
classifiers trained from other seeds. They do not cover a second training.
"""

import math
from dataclasses import dataclass
from statistics import fmean, variance

import torch
from torch import Tensor

GROUPS = 10  # of images, for the jackknife
LEVEL = 0.95


@dataclass(frozen=True)
class Figure:
    """A value and its interval. real: the same figure with real held-out images in place of the samples."""

    value: float
    low: float
    high: float
    real: float | None = None


def class_groups(labels: Tensor, groups: int) -> Tensor:
    """The group of each image, balanced so that every class is spread evenly. labels, result: [N]."""
    rank = torch.zeros_like(labels)
    for label in labels.unique():
        index = (labels == label).nonzero().flatten()
        rank[index] = torch.arange(len(index))
    return rank % groups


def jackknifed(value: float, without: list[float], judges: list[float], real: float | None = None) -> Figure:
    """A Student t interval from two variances: the delete-a-group jackknife over images, and the mean over judges.

    The degrees of freedom of their sum are Satterthwaite's (1946).
    without: the value without each group of images; judges: the value by each judge alone.
    """
    n = len(without)
    parts = [((n - 1) ** 2 / n * variance(without), n - 1)]
    if len(judges) > 1:
        parts.append((variance(judges) / len(judges), len(judges) - 1))
    half = half_width(parts)
    return Figure(value, value - half, value + half, real)


def half_width(parts: list[tuple[float, int]]) -> float:
    """Half the width of a t interval; parts: independent variances of the estimate and their degrees of freedom."""
    from scipy.stats import t

    total = sum(part for part, _ in parts)
    if not total:
        return 0.0
    freedom = total**2 / sum(part**2 / degrees for part, degrees in parts)
    return float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(total)


def exponential(figure: Figure) -> Figure:
    """Turn the figure of a logarithm into that of the value."""
    return Figure(math.exp(figure.value), math.exp(figure.low), math.exp(figure.high), figure.real)


def mean_of(values: list[float]) -> Figure:
    """The mean of independent values, with a Student t interval."""
    half = half_width([(variance(values) / len(values), len(values) - 1)])
    mean = fmean(values)
    return Figure(mean, mean - half, mean + half)


def share_of(share: float, count: int, real: float | None = None) -> Figure:
    """Wilson's interval (1927) of a share of `count` images, which has a width at 0 and at 1, too."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return Figure(share, max(0.0, middle - half), min(1.0, middle + half), real)


def wider(figure: Figure, other: Figure) -> Figure:
    """The figure with the smallest interval that contains both intervals."""
    return Figure(figure.value, min(figure.low, other.low), max(figure.high, other.high), figure.real)


def within(figure: Figure, low: float, high: float) -> Figure:
    """Clip the interval to low..high."""
    return Figure(figure.value, max(low, figure.low), min(high, figure.high), figure.real)


def difference(a: Figure, b: Figure) -> Figure:
    """a - b of two shares that are measured on different images (Newcombe 1998, method 10)."""
    value = a.value - b.value
    low = math.hypot(a.value - a.low, b.high - b.value)
    high = math.hypot(a.high - a.value, b.value - b.low)
    return Figure(value, value - low, value + high)
