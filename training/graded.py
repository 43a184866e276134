"""Figures of one set of samples and of their network, most with an interval.

Letters: N images, F features, G groups of images, J judges.
"""

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoint import ModelConfig
from training.data import Data, Split, counts, take_subset
from training.intervals import (
    GROUPS,
    Figure,
    class_groups,
    difference,
    exponential,
    jackknifed,
    mean_of,
    share_of,
    wider,
    within,
)
from training.judge import Judge
from training.measure import LEVELS, copied, graded, loss_by_level

LOSS_IMAGES = 500  # at most, of held-out and of training images each
Grades = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]  # features [N, F] and classes [N]: samples, held-out


def grade_samples(generated: Split, data: Data, judges: list[Judge]) -> dict[str, Any]:
    """Figures of samples as means over judges; training/intervals.py says what their intervals cover.

    below_real: accuracy on real images minus that on samples. Names that end in _real: of held-out images, whose
    groups are left out likewise. matched: images on each side of a distance.
    """
    held_out = data.test
    grades = [(judge.grade(generated.images), judge.grade(held_out.images)) for judge in judges]
    groups = min(GROUPS, *counts(generated), *counts(held_out))
    sides = [(labels, class_groups(labels, groups)) for labels in (generated.labels, held_out.labels)]
    left = [[torch.where(group == g, -1, labels) for labels, group in sides] for g in range(-1, groups)]
    whole, *without = [[values(grade, *labels) for grade in grades] for labels in left]

    def figure(name: str, by: Callable[[float], float] = float) -> Figure:
        mean = [fmean(by(row[name]) for row in rows) for rows in (whole, *without)]
        reals = [row[f"{name}_real"] for row in whole if f"{name}_real" in row]
        return jackknifed(mean[0], mean[1:], [by(row[name]) for row in whole], fmean(reals) if reals else None)

    matched = int(whole[0]["matched"])
    sizes = {"accuracy": len(generated), "accuracy_real": len(held_out)}
    sizes |= dict.fromkeys(("precision", "precision_real", "recall", "recall_real"), matched)
    found = {n: within(wider(figure(n), share_of(figure(n).value, size)), 0, 1) for n, size in sizes.items()}
    found |= {"ratio": exponential(figure("ratio", math.log)), "kid": figure("kid"), "kid_real": figure("kid_real")}
    found["below_real"] = difference(share_of(found["accuracy"].real or 0, len(held_out)), found["accuracy"])
    copies, copies_real = (copied(split.images, data.train.images) for split in (generated, held_out))
    found["copies"] = share_of(copies, len(generated), copies_real)
    found["copies_real"] = share_of(copies_real, len(held_out))
    classes = by_class(generated, data.class_names, grades)
    return {"matched": matched, "figures": found, "accuracy_by_class": classes}


def values(grades: Grades, labels: Tensor, real_labels: Tensor) -> dict[str, Any]:
    """Figures by one judge. Images with label -1 are left out."""
    (features, predicted), (real, real_predicted) = grades
    found = graded(features, labels, real, real_labels)
    right = {"accuracy": (predicted, labels), "accuracy_real": (real_predicted, real_labels)}
    shares = {name: (p == y)[y >= 0].double().mean().item() for name, (p, y) in right.items()}
    return found | shares | {"ratio": found["frechet"]["ratio"], "ratio_real": 1.0}


def by_class(generated: Split, names: list[str], grades: list[Grades]) -> dict[str, float]:
    right = torch.stack([predicted == generated.labels for (_, predicted), _ in grades]).double().mean(0)  # [N]
    return {name: right[generated.labels == label].mean().item() for label, name in enumerate(names)}


def losses(model: nn.Module, config: ModelConfig, data: Data) -> dict[str, Any]:
    """Denoising losses by noise time u, on held-out images and on as many training images.

    Each is the mean over groups of images; the interval comes from the spread of the groups.
    """
    count = min(LOSS_IMAGES, len(data.test), len(data.train))
    found: dict[str, Any] = {"images": count, "u": LEVELS}
    for name, split in (("held_out", data.test), ("train", data.train)):
        part = take_subset(split, str(count))
        groups = class_groups(part.labels, min(GROUPS, *counts(part)))
        rows = [loss_by_level(model, config, part[groups == group]) for group in groups.unique()]
        levels = zip(*(row["training"] for row in rows), strict=True)
        mean = mean_of([row["mean"] for row in rows])
        found[name] = {"levels": [mean_of(list(level)) for level in levels], "mean": mean}
    return found
