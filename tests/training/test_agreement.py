"""How much two galleries of samples agree, against numbers by hand."""

import numpy as np
import pytest

from training.comparison.agreement import (
    agreement,
    class_means,
    correlations,
    output_agreement,
    pair_correlations,
)


def gallery(images: np.ndarray, classes: int = 2) -> dict[str, np.ndarray]:
    """Classes in turns."""
    return {"images": images, "labels": np.arange(len(images)) % classes, "seeds": np.arange(len(images)) + 7}


def noise(seed: int, count: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8)).astype(np.uint8)


def test_agreement_by_hand() -> None:
    """Two pixels each: rising images correlate by 1 with each other, and by -1 with falling ones."""
    up, down = [0, 9], [200, 100]
    a = gallery(np.array([up, up, down, up], np.uint8).reshape(4, 1, 1, 2))
    b = gallery(np.array([up, down, up, down], np.uint8).reshape(4, 1, 1, 2))
    assert pair_correlations(a, b).tolist() == pytest.approx([1, -1, -1, -1])
    assert class_means(a, b).tolist() == pytest.approx([1, -1, -1, -1])  # image 0 with 2 of b, 1 with 3, and back
    figures = {name: value for name, value in agreement(a, b).items() if name != "found"}  # which ties decide here
    expected = {"same_noise": -0.5, "same_class": -0.5, "beyond_class": 0, "found_by_chance": 0.5}
    assert figures == pytest.approx(expected)


def test_a_gallery_agrees_with_itself_and_its_brighter_copy() -> None:
    dark = noise(0) // 2
    for other in (dark, dark + 100):
        figures = agreement(gallery(dark), gallery(other))
        assert figures["same_noise"] == pytest.approx(1)
        assert abs(figures["same_class"]) < 0.03
        assert figures["found"] == 1


def test_galleries_of_one_class_average_agree_by_chance_only() -> None:
    """Both networks draw the class and ignore the noise."""
    means = np.tile(noise(9, 2), (20, 1, 1, 1)) // 2
    a, b = (gallery((means + noise(seed) // 4).astype(np.uint8)) for seed in (1, 2))
    figures = agreement(a, b)
    assert figures["same_noise"] > 0.6
    assert abs(figures["beyond_class"]) < 0.03
    assert abs(figures["found"] - figures["found_by_chance"]) < 0.15
    assert figures["found_by_chance"] == pytest.approx(1 / 20)


def test_images_of_one_shade_correlate_with_nothing() -> None:
    assert not correlations(gallery(noise(0)), gallery(np.full((40, 1, 8, 8), 7, np.uint8))).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": np.arange(40)}, "their seeds differ"),
        ({"labels": np.zeros(40)}, "their labels differ"),
        ({"images": noise(0)[:, :, :4]}, r"images of \(1, 8, 8\) cannot be compared with \(1, 4, 8\)"),
    ],
)
def test_galleries_that_do_not_belong_together(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agreement(gallery(noise(0)), gallery(noise(0)) | change)


def test_a_class_of_one_image_has_no_baseline() -> None:
    alone = gallery(noise(0, 3))
    with pytest.raises(ValueError, match="at least two images of every class"):
        agreement(alone, alone)


def test_outputs_of_two_networks_agree_by_hand() -> None:
    """First outputs 0 and 4 against 0 and 8: squares 16, spreads 8 and 32. At the second level they are equal."""
    a = np.array([[0, 4], [1, 2]], np.uint8).reshape(2, 2, 1, 1, 1)
    b = np.array([[0, 8], [1, 2]], np.uint8).reshape(2, 2, 1, 1, 1)
    assert output_agreement(a, b) == output_agreement(b, a) == [pytest.approx(1 - 16 / 20), 1]
