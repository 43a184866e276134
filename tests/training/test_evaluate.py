"""Frechet distance, nearest training images, and the figures of a checkpoint."""

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch import Tensor

from models.checkpoint import ModelConfig
from training.data import Data, Split
from training.evaluate import (
    balanced_draw,
    compare_features,
    compare_neighbours,
    evaluate,
    frechet_distance,
    grade,
    nearest,
    save_neighbours_picture,
)
from training.judge import Judge
from training.report import LABEL_WIDTH, sampling_of

DEFAULT = sampling_of(ModelConfig("dit", {}))


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


@pytest.fixture
def random_judge() -> Judge:
    torch.manual_seed(0)
    return Judge().eval().requires_grad_(False)


def test_real_images_get_the_figures_of_real_images(digits: Data, random_judge: Judge) -> None:
    """Even an untrained judge cannot tell training digits from held-out ones, and sees noise on them."""
    data = Data(digits.train[torch.arange(0, 3000, 4)], digits.judge, digits.test[::2], digits.class_names)
    real = digits.train[torch.arange(1, 3000, 12)]
    figures = grade(real, random_judge, data, DEFAULT)
    assert figures.images == 250
    assert 0.5 < figures.frechet.ratio < 1.6
    assert figures.class_accuracy == pytest.approx(sum(figures.accuracy_by_class.values()) / 10, abs=0.02)
    noise = torch.randint(0, 100, real.images.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    noisy = grade(Split(real.images | noise, real.labels), random_judge, data, DEFAULT)
    assert noisy.frechet.ratio > 3 * figures.frechet.ratio
    assert noisy.neighbours.generated_mean > figures.neighbours.generated_mean


def test_a_generator_that_copies_is_found(digits: Data, random_judge: Judge) -> None:
    data = Data(digits.train[:500], digits.judge, digits.test[::5], digits.class_names)
    figures = grade(digits.train[:500], random_judge, data, DEFAULT)
    assert figures.neighbours.suspicious == 1
    assert figures.neighbours.generated_mean == 0


def test_a_checkpoint_is_sampled_as_it_says_unless_told_otherwise(
    checkpoints: Path, digits: Data, random_judge: Judge
) -> None:
    data = Data(digits.train[:100], digits.judge, digits.test[::10], digits.class_names)
    own = evaluate(checkpoints / "unet", random_judge, data, images=29)
    assert own.images == 20  # classes balanced
    assert asdict(own)["sampling"]["steps"] == 2
    again = evaluate(checkpoints / "unet", random_judge, data, images=20)
    assert again == own
    other = evaluate(checkpoints / "unet", random_judge, data, images=20, steps=1, sampler="ddim", guidance=3.0)
    assert (other.sampling.steps, other.sampling.sampler, other.sampling.guidance.scale) == (1, "ddim", 3.0)
    assert other.neighbours.generated_mean != own.neighbours.generated_mean


def test_too_few_images_are_refused(checkpoints: Path, digits: Data, random_judge: Judge) -> None:
    with pytest.raises(ValueError, match="images must be at least 20, two a class, got 19"):
        evaluate(checkpoints / "dit", random_judge, digits, images=19)
