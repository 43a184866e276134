"""Do two networks draw the same image from the same noise? (Kadkhodaie et al. 2310.02557, Zhang et al. 2310.05264)

A gallery holds images [N, C, H, W] uint8, labels [N] and seeds [N] of their noise; see gallery.py.
Two images of one class resemble each other whatever their noise. So the correlation of pairs with the same noise is
compared with that of pairs with the same class and other noise; only the difference is due to the noise.
"""

from collections.abc import Mapping

import numpy as np

Gallery = Mapping[str, np.ndarray]


def agreement(a: Gallery, b: Gallery) -> dict[str, float]:
    """Means over the images. They have no interval: its replicates would be trainings, not images.

    same_noise: correlation of the pixels of image i of a with image i of b. same_class: with the images j of b of
    the same label, j not i. beyond_class: the difference. found: share of images whose partner correlates more than
    all others of its class, mean of both directions. found_by_chance: expected `found` without any agreement.
    """
    table, alike = correlations(a, b), same_class(a)
    partner = np.diag(table)
    others = np.where(alike, table, -np.inf)
    found = [(partner > others.max(axis)).mean() for axis in (0, 1)]
    figures = {
        "same_noise": partner.mean(),
        "same_class": class_means(a, b).mean(),
        "beyond_class": (partner - class_means(a, b)).mean(),
        "found": np.mean(found),
        "found_by_chance": (1 / (alike.sum(1) + 1)).mean(),
    }
    return {name: float(value) for name, value in figures.items()}


def pair_correlations(a: Gallery, b: Gallery) -> np.ndarray:
    """Correlation of image i of a with image i of b: [N]."""
    return np.diag(correlations(a, b)).copy()


def class_means(a: Gallery, b: Gallery) -> np.ndarray:
    """Means of the correlations of image i of a with all images j of b of its label, j not i: [N]."""
    alike = same_class(a)
    return (correlations(a, b) * alike).sum(1) / alike.sum(1)


def correlations(a: Gallery, b: Gallery) -> np.ndarray:
    """Pearson correlation over pixels and channels of image i of a with image j of b: [N, N]; 0 if one is constant.

    Raises:
        ValueError: the galleries differ in noise, classes or image size.
    """
    for name in ("seeds", "labels"):
        if not np.array_equal(a[name], b[name]):
            raise ValueError(f"these galleries cannot be compared: their {name} differ")
    if a["images"].shape != b["images"].shape:
        raise ValueError(f"images of {a['images'].shape[1:]} cannot be compared with {b['images'].shape[1:]}")
    return standard_rows(a["images"]) @ standard_rows(b["images"]).T


def standard_rows(images: np.ndarray) -> np.ndarray:
    """[N, C * H * W] float64 with mean 0 and length 1; a constant image becomes 0."""
    rows = images.reshape(len(images), -1).astype(np.float64)
    rows = rows - rows.mean(1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def same_class(gallery: Gallery) -> np.ndarray:
    """Whether i and j are different images of one label: [N, N] bool.

    Raises:
        ValueError: a class has only one image.
    """
    labels = gallery["labels"]
    alike = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
    if not alike.any(1).all():
        raise ValueError("a gallery needs at least two images of every class")
    return alike


def output_agreement(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Agreement of two networks' outputs [L, B, C, H, W] uint8 for the same inputs: a number for each noise level.

    1 - sum |a - b|^2 / the mean of both sums |outputs - their mean over the images|^2: a symmetric form of r2 in
    denoisers.py. Using uint8 instead of floats changes it by less than 1e-3 on digits.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    spread = sum(((z - z.mean(1, keepdims=True)) ** 2).sum((1, 2, 3, 4)) for z in (x, y)) / 2
    return (1 - ((x - y) ** 2).sum((1, 2, 3, 4)) / np.maximum(spread, 1e-30)).tolist()
