"""The picture of images in, drawn by the shipped models."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import images_in


def test_both_models_keep_what_they_are_asked_to(tmp_path: Path) -> None:
    images_in.main(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 900
    row = dict(images_in.draw_row("unet"))
    three = np.array(row["the image"])
    for name in images_in.CLASSES:
        completed = np.array(row[f"left half kept,\nrest of a {name}"])
        assert (completed[:, :16] == three[:, :16]).all()
        assert (completed[:, 16:] != three[:, 16:]).any()

    def moved(strength: float) -> float:
        return float(np.abs(np.array(row[f"to an 8,\nstrength {strength}"]).astype(int) - three).mean())

    assert moved(0.3) < moved(0.8) < moved(1.0)
