"""Losses, distances and copies against numbers by hand, and the figures of one set of samples."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.checkpoint import ModelConfig, build_model, load_checkpoint
from models.schedule import sample_noise_times
from tests.training.conftest import TINY
from training.data import Data, Split, take_subset, to_float
from training.judge import Judge, train_judge
from training.measure import (
    LEVELS,
    copied,
    judged,
    kernel_distance,
    level_weights,
    loss_by_level,
    measure_loss,
    measure_samples,
    share_inside,
)
from training.report import sampling_of


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def gaussian(seed: int, count: int = 60) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kernel_distance_by_hand() -> None:
    """k(1, 2) + k(0, 1) - 2 (1 + 8 + 1 + 27) / 4."""
    assert kernel_distance(column(1, 2), column(0, 1)) == pytest.approx(27 + 1 - 18.5)


def test_kernel_distance_of_one_distribution_is_zero_on_average() -> None:
    values = torch.tensor([kernel_distance(gaussian(2 * i), gaussian(2 * i + 1)) for i in range(100)])
    error = float(values.std()) / 10
    assert abs(float(values.mean())) < 3 * error  # a biased estimate lies ten errors above
    assert min(values) < 0
    assert kernel_distance(gaussian(0) + 1, gaussian(1)) > 100 * error


def test_balls_by_hand() -> None:
    """Radii 3, 2, 2 and 3: 5.5 lies in the ball of 3, -4 in none."""
    assert share_inside(column(5.5, -4), column(0, 1, 2, 3)) == 0.5


def test_precision_and_recall_of_far_and_equal_sets() -> None:
    real = gaussian(0)
    assert (share_inside(real + 100, real), share_inside(real, real + 100)) == (0, 0)
    assert share_inside(real, real) == 1
    narrow = real[:1] + 1e-3 * gaussian(1)  # all samples alike: inside, but they cover nothing
    assert share_inside(narrow, real) == 1
    assert share_inside(real, narrow) < 0.05


def points(*values: int) -> Tensor:
    """Images of one pixel."""
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1)


def test_copies_by_hand() -> None:
    """Distances 9 and 31, 11 and 29, and one that is no copy of either of two twins."""
    assert copied(points(59), points(50, 90)) == 1
    assert copied(points(61), points(50, 90)) == 0
    assert copied(points(61), points(60, 60, 200)) == 0


def test_copies_of_training_images_are_found(digits: Data) -> None:
    train = (
        digits.train.images.repeat(2, 1, 1, 1)[:5000] // torch.tensor([2] * 3000 + [1] * 2000)[:, None, None, None]
    )
    train = train.to(torch.uint8)
    assert copied(train[[3, 700, 4500]], train) == 1
    assert copied(digits.test.images[:200], digits.train.images) < 0.02
    mixed = torch.cat([digits.train.images[:50], digits.test.images[:150]])
    assert copied(mixed, digits.train.images) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
def test_losses_of_a_network_that_answers_zero(prediction: str, digits: Data) -> None:
    """With the mean square s of the pictures, the denoised image p x errs by (p a - 1)^2 s + p^2 o^2."""
    config = ModelConfig("dit", TINY["dit"], prediction=prediction)
    split = take_subset(digits.test, "150")
    losses = loss_by_level(build_model(config).eval(), config, split)
    s = float(to_float(split.images).square().mean())
    for u, x0, training in zip(LEVELS, losses["x0"], losses["training"], strict=True):
        a, o = 1 - u, u
        p = {"x0": 0, "v": a / (a * a + o * o), "flow": 1}[prediction]
        target = {"x0": s / max(o, 0.1) ** 2, "v": a * a + o * o * s, "flow": 1 + s}[prediction]
        assert x0 == pytest.approx((p * a - 1) ** 2 * s + p * p * o * o, rel=0.02)
        assert training == pytest.approx(target, rel=0.02)


def test_levels_count_as_often_as_training_draws_them(checkpoints: Path, digits: Data) -> None:
    drawn = sample_noise_times(4000, torch.Generator().manual_seed(0))
    shares = torch.histc(drawn, len(LEVELS), 0, 1) / len(drawn)
    torch.testing.assert_close(level_weights().float(), shares, rtol=0, atol=1e-3)
    losses = loss_by_level(*load_checkpoint(checkpoints / "unet"), digits.test[:20])
    expected = sum(a * b for a, b in zip(losses["training"], shares.tolist(), strict=True))
    assert losses["mean"] == pytest.approx(expected, rel=0.01)


def test_losses_are_the_same_whatever_was_drawn_before(checkpoints: Path, digits: Data) -> None:
    model, config = load_checkpoint(checkpoints / "unet")
    first = measure_loss(model, config, digits, 30)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert measure_loss(model, config, digits, 30) == first
    assert torch.equal(torch.get_rng_state(), state)
    few = replace(digits, train=take_subset(digits.train, "20"))
    assert measure_loss(model, config, few, 30)["images"] == 20


@pytest.fixture(scope="module")
def judge(digits: Data) -> Judge:
    return train_judge(digits.judge, 10, seed=0, epochs=2)


def test_real_images_are_graded_as_perfect(judge: Judge, digits: Data) -> None:
    figures = judged(take_subset(digits.train, "500"), digits.test, judge)
    assert figures["matched"] == figures["frechet"]["sample_size"] == 500
    assert figures["frechet"]["ratio"] == pytest.approx(1, abs=0.35)
    for name in ("accuracy", "precision", "recall"):
        assert figures[name] == pytest.approx(figures[f"{name}_real"], abs=0.08)
    assert figures["kid"] == pytest.approx(figures["kid_real"], abs=0.05)


def test_noise_is_graded_as_bad(judge: Judge, digits: Data) -> None:
    labels = torch.arange(10).repeat(20)
    noise = torch.randint(0, 256, (200, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    figures = judged(Split(noise.to(torch.uint8), labels), digits.test, judge)
    assert figures["matched"] == 200
    assert figures["accuracy"] < 0.3
    assert figures["recall"] < 0.1
    assert figures["frechet"]["ratio"] > 5
    assert figures["kid"] > 10 * abs(figures["kid_real"])


def test_one_set_of_samples_gives_all_figures(judge: Judge, checkpoints: Path, digits: Data) -> None:
    model, config = load_checkpoint(checkpoints / "dit")
    figures = measure_samples(model, config, digits, [judge, judge], 20, sampling_of(config))
    assert figures == measure_samples(model, config, digits, [judge, judge], 20, sampling_of(config))
    assert figures["samples"] == figures["judges"][0]["matched"] == 20
    assert figures["judges"][0] == figures["judges"][1]
    assert figures["sampling"]["steps"] == 2
    assert 0 <= figures["copies"] <= 1
    assert all(math.isfinite(v) for v in figures["judges"][0].values() if isinstance(v, float))
