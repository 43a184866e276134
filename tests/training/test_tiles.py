"""The rules of the tiles: what keeps them, and what breaks each."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from training import tiles
from training.data import Data, DataError, fingerprint, load_data
from training.measure import copied
from training.tiles import PANEL, PATCH, PATCHES, draw_tiles, rule_shares

ALL = dict.fromkeys(("far", "near", "texture", "coherent", "far_clear", "near_clear"), 1)
LABELS = torch.arange(1000) % 10


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("tiles")


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    return draw_tiles(LABELS, seed=1)


def shares(images: Tensor, labels: Tensor = LABELS) -> dict[str, float]:
    found = rule_shares(images, labels)
    assert found.pop("samples") == len(images)
    return found


def noisy(images: Tensor, std: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    return (images + std * noise).round().clamp(0, 255).byte()


def blurred(images: Tensor) -> Tensor:
    """By a box of 3x3 pixels."""
    pool = torch.nn.functional.avg_pool2d
    return pool(images.float(), 3, stride=1, padding=1, count_include_pad=False).round().byte()


def paint(images: Tensor, corner: tuple[int, int], colours: Tensor) -> Tensor:
    """colours: [N, 3]."""
    row, column = corner
    images = images.clone()
    images[:, :, row : row + PATCH, column : column + PATCH] = colours[:, :, None, None].byte()
    return images


def test_splits_are_as_large_as_those_of_the_digits(data: Data, digits: Data) -> None:
    for ours, theirs in ((data.train, digits.train), (data.judge, digits.judge), (data.test, digits.test)):
        assert ours.images.shape == theirs.images.shape
        assert ours.labels.bincount().tolist() == [len(theirs) // 10] * 10
    assert len(data.class_names) == 10


def test_tiles_are_drawn_alike_and_no_two_are_alike(data: Data) -> None:
    torch.manual_seed(99)
    again = load_data("tiles")
    assert [fingerprint(s) for s in (data.train, data.test)] == [fingerprint(s) for s in (again.train, again.test)]
    assert len({i.numpy().tobytes() for part in (data.train, data.judge, data.test) for i in part.images}) == 5000
    assert copied(data.test.images, data.train.images) < 0.03  # else they would pass for copies


def test_no_colour_is_clipped(data: Data) -> None:
    assert data.train.images.min() > 0
    assert data.train.images.max() < 255


def test_every_tile_keeps_all_rules(data: Data) -> None:
    assert data.rules is rule_shares
    for split in (data.train, data.judge, data.test):
        assert shares(split.images, split.labels) == ALL


def test_noise_breaks_no_rule(drawn: Tensor) -> None:
    assert shares(noisy(drawn, 10)) == ALL


@pytest.mark.parametrize("rule", PATCHES)
@pytest.mark.parametrize("which", [0, 1])
def test_a_patch_of_its_own_colour_agrees_by_chance(drawn: Tensor, rule: str, which: int) -> None:
    index = torch.randint(8, (1000,), generator=torch.Generator().manual_seed(3))
    found = shares(paint(drawn, PATCHES[rule][which], tiles.palette()[index]))
    assert found[rule] == found["coherent"] == pytest.approx(1 / 8, abs=3 * math.sqrt(7 / 64 / 1000))
    assert found | {rule: 1, "coherent": 1} == ALL


def test_colours_lie_apart() -> None:
    colours, ground = tiles.palette(), tiles.grounds()
    assert torch.pdist(colours).min() > 2 * (tiles.PATCH_RADIUS + tiles.JITTER["patch"] * math.sqrt(3))
    assert torch.cdist(colours, ground).min() > tiles.PATCH_RADIUS + tiles.JITTER["ground"] * math.sqrt(3)
    assert torch.pdist(ground).min() > 2 * tiles.JITTER["ground"] * math.sqrt(3)


@pytest.mark.parametrize("rule", PATCHES)
def test_patches_that_are_missing_do_not_agree(drawn: Tensor, rule: str) -> None:
    for corner in PATCHES[rule]:
        drawn = paint(drawn, corner, drawn[:, :, 0, 0])
    assert shares(drawn) == ALL | {rule: 0, f"{rule}_clear": 0, "coherent": 0}


@pytest.mark.parametrize("rule", PATCHES)
def test_a_mixture_of_two_colours_is_none(drawn: Tensor, rule: str) -> None:
    """As a network draws that averages over what it does not know."""
    mixed = (tiles.palette() + tiles.palette().roll(1, 0)) / 2
    for corner in PATCHES[rule]:
        drawn = paint(drawn, corner, mixed[LABELS % 8])
    assert shares(drawn) == ALL | {rule: 0, f"{rule}_clear": 0, "coherent": 0}


def without_stripes(images: Tensor) -> Tensor:
    images = images.clone()
    images[:, :, *PANEL] = images[:, :, *PANEL].float().mean((2, 3), keepdim=True).byte()
    return images


def quarter_blurred(images: Tensor) -> Tensor:
    part = torch.zeros(32, 32, dtype=torch.bool)
    part[9:20, 1:12] = True
    return torch.where(part, blurred(images), images)


def shifted_below(images: Tensor) -> Tensor:
    """From the middle of its upper quarters, the panel is half a period behind."""
    part = torch.zeros(32, 32, dtype=torch.bool)
    part[14:31, 1:23] = True
    mean = images[:, :, *PANEL].float().mean((2, 3), keepdim=True)
    opposite = (2 * mean - images).clamp(0, 255).byte()
    return torch.where(part, opposite, images)


@pytest.mark.parametrize("spoil", [blurred, without_stripes, quarter_blurred, shifted_below])
def test_stripes_that_are_not_regular_fail(drawn: Tensor, spoil: Callable[[Tensor], Tensor]) -> None:
    found = shares(spoil(drawn))
    assert found["texture"] == 0
    assert (found["far"], found["near"]) == (1, 1)


def test_stripes_of_another_class_fail(drawn: Tensor) -> None:
    foreign = drawn.clone()
    foreign[:, :, *PANEL] = drawn.roll(-1, 0)[:, :, *PANEL]
    assert shares(foreign) == ALL | {"texture": 0}


def test_a_part_on_another_ground_is_not_coherent(drawn: Tensor) -> None:
    part = torch.zeros(32, 32, dtype=torch.bool)
    part[16:, 16:] = True
    foreign = torch.where(part & tiles.ground_mask(), drawn.roll(-1, 0), drawn)
    assert shares(foreign) == ALL | {"coherent": 0}


@pytest.mark.parametrize(("size", "channels", "shape"), [(64, 3, "3x64x64"), (32, 1, "1x32x32")])
def test_tiles_of_other_shapes_are_refused(size: int, channels: int, shape: str) -> None:
    with pytest.raises(DataError, match=rf"tiles images are \(3, 32, 32\), not {shape}"):
        load_data("tiles", None, size, channels)
