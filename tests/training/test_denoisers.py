"""Denoisers of small images, against plain loops; and networks whose answers are known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.checkpoint import ModelConfig
from training.comparison import denoisers
from training.comparison.denoisers import Denoisers, r2
from training.comparison.probe import (
    Denoise,
    network_denoiser,
    noise_level,
    probe,
    sensitivity,
    shift_error,
    weighted_distance,
)
from training.data import Data, Split, to_float
from training.measure import LEVELS

ALPHA, SIGMA = 0.6, 0.4
CONFIG = ModelConfig("dit", {"image_size": 8})


def pictures(seed: int, count: int, channels: int = 3, gray: bool = True) -> Split:
    """Bright squares at random places; labels in order, as in the digits' splits."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, channels, 8, 8, dtype=torch.uint8)
    for image, place in zip(images, torch.randint(0, 5, (count, 2), generator=generator), strict=True):
        image[:, place[0] : place[0] + 3, place[1] : place[1] + 3] = 220
    if not gray:
        images[:, 0] //= 2
    return Split(images, torch.arange(10).repeat_interleave(count // 10))


TRAIN = to_float(pictures(0, 50).images)
NOISY = ALPHA * to_float(pictures(1, 10).images) + SIGMA * torch.randn(
    10, 3, 8, 8, generator=torch.Generator().manual_seed(2)
)


def nearness(x: Tensor, train: Tensor) -> Tensor:
    """Weights of training images by their squared distances, in float64: [N]."""
    squares = (x.double() - ALPHA * train.double()).square().flatten(1).sum(1)
    return (-squares / (2 * SIGMA**2)).softmax(0)


def test_the_optimal_denoiser_weighs_training_images() -> None:
    found = Denoisers(TRAIN).optimal(NOISY, ALPHA, SIGMA)
    expected = [(nearness(x, TRAIN)[:, None, None, None] * TRAIN.double()).sum(0) for x in NOISY]
    torch.testing.assert_close(found, torch.stack(expected).float())


def test_the_optimal_denoiser_at_both_ends() -> None:
    known = Denoisers(TRAIN)
    torch.testing.assert_close(known.optimal(0.99 * TRAIN, 0.99, 0.01), TRAIN)
    torch.testing.assert_close(known.optimal(NOISY, 0.0, 1.0), TRAIN.mean(0).expand(10, -1, -1, -1))


def test_the_wiener_denoiser_is_the_regression_on_the_noisy_image() -> None:
    rows = TRAIN.double().flatten(1)
    mean, covariance = rows.mean(0), torch.cov(rows.T, correction=0)
    noisy = ALPHA**2 * covariance + SIGMA**2 * torch.eye(len(mean), dtype=torch.float64)
    gain = ALPHA * torch.linalg.solve(noisy, covariance).T
    expected = mean + (NOISY.double().flatten(1) - ALPHA * mean) @ gain.T
    found = Denoisers(TRAIN).wiener(NOISY, ALPHA, SIGMA)
    torch.testing.assert_close(found, expected.float().view_as(NOISY))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_local_denoiser_weighs_patches_at_the_same_place(size: int) -> None:
    found = local(Denoisers(TRAIN), size)
    r = size // 2
    for h, w in ((0, 0), (3, 4), (7, 2)):  # a corner, the middle, an edge
        part = (..., slice(max(0, h - r), h + r + 1), slice(max(0, w - r), w + r + 1))
        expected = torch.stack([nearness(x[part], TRAIN[part]) @ TRAIN[:, :, h, w].double() for x in NOISY])
        torch.testing.assert_close(found[:, :, h, w], expected.float(), rtol=1e-4, atol=1e-5)


def local(denoisers: Denoisers, size: int) -> Tensor:
    return denoisers.local(NOISY, torch.full((10,), ALPHA), torch.full((10,), SIGMA), size)


def test_a_patch_as_large_as_the_image_gives_the_optimal_denoiser() -> None:
    for train in (TRAIN, to_float(pictures(0, 50, gray=False).images)):
        known = Denoisers(train)
        torch.testing.assert_close(local(known, 15), known.optimal(NOISY, ALPHA, SIGMA), rtol=1e-3, atol=1e-4)


def test_parts_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = local(Denoisers(TRAIN), 3)
    monkeypatch.setattr(denoisers, "PATCHES", 3 * len(TRAIN))
    monkeypatch.setattr(denoisers, "CHUNK", 4)
    torch.testing.assert_close(local(Denoisers(TRAIN), 3), expected)


def test_each_image_has_its_own_noise_level() -> None:
    alpha, sigma = torch.tensor([0.9, 0.5] * 5), torch.tensor([0.1, 0.5] * 5)
    known = Denoisers(TRAIN)
    both = known.local(NOISY, alpha, sigma, 3)
    torch.testing.assert_close(both[1::2], known.local(NOISY[1::2], alpha[1::2], sigma[1::2], 3))
    assert not torch.allclose(both[::2], known.local(NOISY[::2], alpha[1::2], sigma[1::2], 3))


def test_equal_channels_give_the_same_as_different_ones() -> None:
    short, long = Denoisers(TRAIN), Denoisers(TRAIN)
    long.gray, long.narrowed, long.train = False, 1.0, TRAIN
    long.mean = TRAIN.double().mean(0)
    rows = (TRAIN.double() - long.mean).flatten(1)
    long.variances, long.axes = torch.linalg.eigh(rows.T @ rows / len(rows))
    torch.testing.assert_close(short.wiener(NOISY, ALPHA, SIGMA), long.wiener(NOISY, ALPHA, SIGMA))
    torch.testing.assert_close(local(short, 3), local(long, 3), rtol=1e-4, atol=1e-5)


def test_r2_by_hand() -> None:
    """Outputs 0 and 2 about their mean 1: squares 2. A reference that is off by 1 once: 1."""
    outputs = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)
    assert r2(outputs, outputs) == 1
    assert r2(outputs, outputs.mean(0).expand(2, -1, -1, -1)) == 0
    assert r2(outputs, outputs + torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)) == 0.5
    assert r2(outputs, outputs + 10) < 0


class Known(nn.Module):
    """A network that is one of the denoisers, and refuses all but the null class."""

    def __init__(self, name: str):
        super().__init__()
        self.answer = getattr(Denoisers(TRAIN), name)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        assert (y == 10).all()
        if x.requires_grad:
            return x * 0.5
        u = float(t[0]) / 1000
        return self.answer(x, *noise_level(CONFIG, u))


@pytest.fixture(scope="module")
def data() -> Data:
    held_out = pictures(1, 40)
    return Data(pictures(0, 50), held_out, held_out, [str(i) for i in range(10)])


@pytest.mark.parametrize(("name", "other"), [("wiener", "optimal"), ("optimal", "wiener")])
def test_a_network_that_is_a_denoiser_has_r2_1(name: str, other: str, data: Data) -> None:
    figures, arrays = probe(Known(name), CONFIG, data)
    assert figures["u"] == LEVELS
    assert figures["r2"][name] == pytest.approx([1] * 8, abs=1e-6)
    assert max(figures["r2"][other]) < 1 - 1e-4
    assert figures["error"]["network"] == pytest.approx(figures["error"][name], rel=1e-5)
    shift, shift_wiener = figures["shift_errors"], figures["shift_errors_wiener"]
    assert (shift == shift_wiener) is (name == "wiener")
    assert figures["shift_error"] == pytest.approx(np.mean([shift["1"], shift["2"]], axis=0))
    assert figures["reach"] == [0] * 8  # each pixel of x / 2 depends on itself alone
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == {
        **dict.fromkeys(("noisy", "optimal", "wiener", "local"), ((8, 2, 1, 8, 8), "uint8")),
        "outputs": ((8, 20, 1, 8, 8), "uint8"),
        "sensitivity": ((8, 8, 8), "float16"),
    }


@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
def test_every_prediction_becomes_an_image(prediction: str) -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return torch.zeros_like(x)

    config = ModelConfig("dit", {"image_size": 8}, prediction=prediction)
    factor = {"x0": 0, "v": 0.75 / (0.75**2 + 0.25**2), "flow": 1}[prediction]
    torch.testing.assert_close(network_denoiser(Zero(), config, 0.25)(NOISY), factor * NOISY)


def blur(x: Tensor) -> Tensor:
    """The mean of 3 x 3 pixels, in a circle."""
    return torch.stack([x.roll((a, b), (2, 3)) for a in (-1, 0, 1) for b in (-1, 0, 1)]).mean(0)


@pytest.mark.parametrize(
    ("denoise", "reach"),
    [
        (torch.tanh, 0),
        (lambda x: x.roll(2, 3), 2),
        (blur, (4 + 4 * math.sqrt(2)) / 9),
    ],
    ids=["pixelwise", "moved", "blurred"],
)
def test_a_denoiser_that_is_alike_at_every_place_has_no_shift_error(denoise: Denoise, reach: float) -> None:
    assert [shift_error(denoise, NOISY, pixels) for pixels in (1, 2, 4)] == pytest.approx([0] * 3, abs=1e-12)
    assert sensitivity(denoise, NOISY)[1] == pytest.approx(reach, rel=1e-5)


def test_a_field_shows_where_a_pixel_comes_from() -> None:
    field, _ = sensitivity(lambda x: -3 * x.roll(1, 3), NOISY)
    assert field.nonzero().tolist() == [[4, 3]]
    assert float(field[4, 3]) == pytest.approx(3)
    field, _ = sensitivity(blur, NOISY)
    assert field[3:6, 3:6].flatten().tolist() == pytest.approx([1 / 9] * 9)
    assert float(field.sum()) == pytest.approx(1)


def test_a_denoiser_that_differs_by_place_has_a_shift_error() -> None:
    """Where only the left half is answered, a shift by 4 of 8 pixels sideways leaves nothing in common."""
    half = torch.cat([torch.ones(8, 4), torch.zeros(8, 4)], dim=1)
    sideways = (NOISY.roll(4, 3) * half - (NOISY * half).roll(4, 3)).square().sum()
    expected = float(sideways / (NOISY * half - (NOISY * half).mean(0)).square().sum()) / 2  # up and down: 0
    assert shift_error(lambda x: x * half, NOISY, 4) == pytest.approx(expected)
    assert expected > 0.5


def test_a_field_of_zeros_reaches_nowhere() -> None:
    assert weighted_distance(torch.zeros(8, 8), 4, 4) == 0
