"""The picture of what lies between, drawn by the shipped models."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import between


def test_ways_lead_from_end_to_end(tmp_path: Path) -> None:
    between.main(tmp_path / "sheet.png", steps=1)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 900
    groups = {text: np.stack([np.array(i) for i in images]) for text, images in between.draw_row("dit", steps=2)}
    for text, images in groups.items():
        assert (np.abs(np.diff(images.astype(int), axis=0)).max(axis=(1, 2, 3)) > 20).all(), text
    for text in ("from 3 to 8", "a 5 from seed 1 to seed 2"):
        first, second, *_, last = groups[text].astype(float)
        assert np.abs(second - first).mean() < np.abs(last - first).mean(), text
    assert (groups["three fours"] != groups["the same, away from 9"]).any(axis=(1, 2, 3)).all()
