"""Moved training pictures; the distortions of the judge are tested in test_judge.py."""

import pytest
import torch

from tests.training.runs import ALONE, Config
from training.augment import moved
from training.data import Data
from training.train import Trainer, train


def numbered(count: int) -> torch.Tensor:
    """Every pixel of an image of its own value."""
    return torch.arange(2 * 5 * 4, dtype=torch.uint8).view(1, 2, 5, 4).repeat(count, 1, 1, 1)


def test_pictures_move_by_every_distance_and_repeat_their_border() -> None:
    images, seen = numbered(400), set()
    for image, result in zip(images, moved(images, 2, False, seed=3), strict=True):
        ways = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(result, rolled(image, down, right))
        ]
        assert len(ways) == 1
        seen |= set(ways)
    assert len(seen) == 25


def rolled(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    padded = torch.nn.functional.pad(image[None].float(), (2, 2, 2, 2), mode="replicate")[0]
    return padded[:, 2 - down : 7 - down, 2 - right : 6 - right].byte()


def test_half_of_the_pictures_are_mirrored() -> None:
    images = numbered(400)
    result = moved(images, 0, True, seed=3)
    mirrored = (result == images.flip(3)).flatten(1).all(1)
    assert 0.4 < mirrored.double().mean() < 0.6
    assert torch.equal(result[~mirrored], images[~mirrored])


def test_the_seed_alone_decides() -> None:
    images = torch.randint(0, 256, (8, 3, 6, 6), dtype=torch.uint8)
    before = torch.get_rng_state()
    assert torch.equal(moved(images, 1, True, 5), moved(images, 1, True, 5))
    assert not torch.equal(moved(images, 1, True, 5), moved(images, 1, True, 6))
    assert moved(images, 0, False, 5) is images
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_moves_its_pictures_and_nothing_else(tiny_config: Config, digits: Data) -> None:
    plain, shifted = (Trainer(tiny_config(**options), ALONE) for options in ({}, {"shift": 2, "flip": True}))
    a, b, again = plain.draw_batch(4), shifted.draw_batch(4), shifted.draw_batch(4)
    assert all(torch.equal(x, y) for x, y in zip(b, again, strict=True))
    assert not torch.equal(a[0], b[0])
    assert all(torch.equal(x, y) for x, y in zip(a[1:], b[1:], strict=True))
    assert not torch.equal(b[0], shifted.draw_batch(5)[0])


@pytest.mark.parametrize(
    ("option", "now"), [({"shift": 1}, "shift was 0, now 1"), ({"flip": True}, "flip was false")]
)
def test_moved_pictures_are_another_recipe(option: dict, now: str, tiny_config: Config) -> None:
    train(tiny_config(steps=1))
    with pytest.raises(ValueError, match=now):
        train(tiny_config(steps=1, **option))
