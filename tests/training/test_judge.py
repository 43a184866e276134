"""The classifier that grades samples, and the distortions that it is trained with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training import judge as judge_module
from training.augment import distort, random_affine
from training.data import Data, Split
from training.judge import CARD, WEIGHTS, load_judge, train_judge


def quadrants(count: int, seed: int) -> Split:
    """Class k: a bright disc in quadrant k on a noisy ground."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = torch.randint(0, 80, (count, 1, 32, 32), generator=generator)
    for image, k in zip(images, labels.tolist(), strict=True):
        top, left = 16 * (k // 2) + 5, 16 * (k % 2) + 5
        image[:, top : top + 7, left : left + 7] = 220
    return Split(images.to(torch.uint8), labels)


@pytest.fixture
def easy(monkeypatch: pytest.MonkeyPatch) -> Data:
    monkeypatch.setattr(judge_module, "EPOCHS", 1)
    return Data(quadrants(8, 0), quadrants(40, 1), quadrants(40, 2), list("abcd"))


def test_the_judge_learns(easy: Data) -> None:
    judge = train_judge(quadrants(160, 1), 4, seed=0, epochs=12)
    assert judge.accuracy(easy.test) >= 0.95
    features, predicted = judge.grade(easy.test.images, batch_size=7)
    assert features.shape == (40, 64)
    assert (predicted == easy.test.labels).double().mean() == pytest.approx(judge.accuracy(easy.test))


def test_the_same_seed_gives_the_same_judge_and_leaves_the_generator_alone(easy: Data) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    judges = [train_judge(easy.judge, 4, seed=seed, epochs=1).state_dict() for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(judges[0][name], judges[1][name]) for name in judges[0])
    assert not torch.equal(judges[0]["head.1.weight"], judges[2]["head.1.weight"])


def test_a_judge_is_trained_once(easy: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, card = load_judge(tmp_path / "judge", easy)
    assert card["accuracy"] == judge.accuracy(easy.test)
    monkeypatch.setattr(judge_module, "train_judge", None)  # would raise
    again, same = load_judge(tmp_path / "judge", easy)
    assert same == card
    assert torch.equal(again.grade(easy.test.images)[0], judge.grade(easy.test.images)[0])


@pytest.mark.parametrize("damaged", [CARD, WEIGHTS])
def test_a_damaged_judge_is_trained_again(damaged: str, easy: Data, tmp_path: Path) -> None:
    _, card = load_judge(tmp_path, easy)
    (tmp_path / damaged).write_bytes(b"{")
    assert load_judge(tmp_path, easy)[1] == card


def test_a_judge_of_other_images_is_replaced(easy: Data, tmp_path: Path) -> None:
    _, card = load_judge(tmp_path, easy)
    _, other = load_judge(tmp_path, replace(easy, judge=quadrants(40, 3)))
    assert other["data_sha256"] != card["data_sha256"]
    assert other["sha256"] != card["sha256"]


def test_a_distorted_image_still_shows_the_same_thing() -> None:
    torch.manual_seed(0)
    x = torch.full((64, 3, 32, 32), -1.0)
    x[:, :, 8:24, 8:24] = 1.0
    y = distort(x)
    assert y.shape == x.shape
    assert y.min() >= -1.0
    assert y.max() <= 1.0
    ink = (y > 0).double().mean((1, 2, 3)) / 0.25
    assert 0.7 < ink.min() < 0.95
    assert 1.05 < ink.max() < 1.4
    assert len({image.numpy().tobytes() for image in y}) == 64
    assert (y[:, :, 13:19, 13:19] > 0.9).all()  # the middle stays where it is
    assert (y[:, :, :2, :2] == -1).all()


def test_the_affine_maps_stay_within_their_ranges() -> None:
    torch.manual_seed(0)
    maps = random_affine(2000, 32)
    areas = maps[:, 0, 0] * maps[:, 1, 1] - maps[:, 0, 1] * maps[:, 1, 0]
    assert 0.88**2 <= areas.min() < 0.85
    assert 1.18 < areas.max() <= 1.12**2
    pixels = maps[:, :, 2].abs() * 16
    assert 1.9 < pixels.max() <= 2.0
