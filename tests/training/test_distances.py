"""Samples of every class, Frechet distance, and nearest training images."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch import Tensor

from models.checkpoint import load_checkpoint
from training.distances import (
    balanced_draw,
    compare_features,
    compare_neighbours,
    frechet_distance,
    nearest,
    sample_balanced,
    save_neighbours_picture,
)
from training.report import LABEL_WIDTH, sampling_of


def gaussian(seed: int, count: int = 400, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing


def test_frechet_distance_of_a_sample_to_itself_is_zero() -> None:
    assert frechet_distance(gaussian(0), gaussian(0)) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_a_shifted_and_scaled_sample() -> None:
    """Covariances S and c^2 S: |shift|^2 + (1 - c)^2 tr S."""
    a, shift = gaussian(0), torch.tensor([3.0, 0, 0, -4, 0]).double()
    b = (a - a.mean(0)) * 2.5 + a.mean(0) + shift
    assert frechet_distance(a, b) == pytest.approx(25 + 1.5**2 * float(a.T.cov().trace()))


def test_frechet_distance_against_the_matrix_square_root() -> None:
    a, b = gaussian(1), gaussian(2)
    cov_a, cov_b = (np.cov(x.numpy(), rowvar=False) for x in (a, b))
    root = np.real(np.asarray(scipy.linalg.sqrtm(cov_a @ cov_b)))
    mean = float((a.mean(0) - b.mean(0)).square().sum())
    expected = mean + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root)
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)


def test_frechet_distance_of_fewer_samples_than_features() -> None:
    assert math.isfinite(frechet_distance(gaussian(0, count=3), gaussian(1, count=4)))


def test_matched_distances_of_one_distribution_are_equal() -> None:
    labels = torch.arange(400) % 4
    equal = compare_features(gaussian(3)[:400], labels, gaussian(3)[:400] + 1e-3, labels)
    assert equal.sample_size == 200
    assert 0.4 < equal.ratio < 1.3
    shifted = compare_features(gaussian(3) + 2, labels, gaussian(3), labels)
    assert shifted.ratio > 20
    assert shifted.matched_real == pytest.approx(equal.matched_real, rel=1e-6)
    assert equal == compare_features(gaussian(3)[:400], labels, gaussian(3)[:400] + 1e-3, labels)


def test_a_balanced_draw_takes_as_many_of_every_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 20)
    generator = torch.Generator().manual_seed(0)
    a, b = (balanced_draw(labels, 10, generator) for _ in range(2))
    assert labels[a].tolist() == [[k] * 10 for k in range(3)]
    assert len(set(a.flatten().tolist())) == 30
    assert not torch.equal(a, b)


def random_images(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)


def test_nearest_finds_a_planted_copy() -> None:
    train, images = random_images(0, 5000), random_images(1, 6)
    images[2] = train[4321]
    images[4] = train[17]
    images[4, 0, 0, 0] ^= 8  # one pixel of one channel
    distances, index = nearest(images, train)
    assert index[2] == 4321
    assert distances[2] == 0
    assert index[4] == 17
    assert float(distances[4]) == pytest.approx(8 / 127.5 / math.sqrt(3), rel=1e-4)
    assert distances[[0, 1, 3, 5]].min() > 5


def test_nearest_agrees_with_the_plain_definition() -> None:
    train, images = random_images(0, 50), random_images(1, 4)
    squares = ((images[:, None].double() - train[None].double()) / 127.5).square().mean(2).sum((2, 3))
    distances, index = nearest(images, train)
    torch.testing.assert_close(distances.double(), squares.min(1).values.sqrt(), rtol=1e-5, atol=0)
    assert torch.equal(index, squares.argmin(1))


def test_copies_are_suspicious() -> None:
    train, held_out, honest = random_images(0, 300), random_images(1, 100), random_images(2, 100)
    clean = compare_neighbours(honest, held_out, train)
    assert clean.suspicious <= 0.05
    assert clean.generated_mean == pytest.approx(clean.held_out_mean, rel=0.02)
    copied = compare_neighbours(torch.cat([honest[:70], train[:30]]), held_out, train)
    assert copied.suspicious == pytest.approx(0.3, abs=0.05)
    assert copied.generated_first_percentile == 0


def test_the_picture_shows_the_closest_pair_first(tmp_path: Path) -> None:
    train, images = random_images(0, 40), random_images(1, 10)
    images[7] = train[33]
    save_neighbours_picture(tmp_path / "pairs.png", images, train, columns=4)
    with Image.open(tmp_path / "pairs.png") as picture:
        assert picture.size == (LABEL_WIDTH + 4 * 16, 2 * 16)
        above, below = (picture.crop((LABEL_WIDTH, y, LABEL_WIDTH + 16, y + 16)) for y in (0, 16))
    assert above.tobytes() == below.tobytes()


def test_samples_are_balanced_and_not_too_few(checkpoints: Path) -> None:
    model, config = load_checkpoint(checkpoints / "unet")
    assert sample_balanced(model, config, 29, sampling_of(config)).labels.bincount().tolist() == [2] * 10
    with pytest.raises(ValueError, match="images must be at least 20, two a class, got 19"):
        sample_balanced(model, config, 19, sampling_of(config))
