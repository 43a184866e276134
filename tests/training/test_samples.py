"""The sheet that shows samples of several checkpoints."""

from pathlib import Path

import pytest
from PIL import Image

from models.checkpoint import CheckpointError
from tests.checkpoints import write_checkpoint
from training.checkpoints import find_checkpoints
from training.samples import GAP, HEADING, LABELS, MARGIN, TILE, draw_samples

PETS = ["cat", "dog", "yellow house"]


def test_samples_stand_side_by_side(checkpoints: Path, tmp_path: Path) -> None:
    both = find_checkpoints(["dit", "unet"], checkpoints)
    out = draw_samples(both, tmp_path / "new" / "samples.png", columns=8, seed=4)
    step, left = TILE + GAP, MARGIN + LABELS
    width = left + 8 * step
    with Image.open(out) as sheet:
        assert sheet.size == (2 * width + MARGIN, 2 * MARGIN + HEADING + 10 * step)
        top = MARGIN + HEADING + 9 * step
        tiles = [sheet.crop((x, top, x + TILE, top + TILE)).tobytes() for x in (left, width + left)]
        heading = sheet.crop((left, MARGIN, left + 100, MARGIN + 26))
    assert tiles[0] != tiles[1]
    assert all(len(set(tile)) > 10 for tile in tiles)  # pictures, not paper
    alone = draw_samples({"dit": both["dit"]}, tmp_path / "alone.png", columns=8, seed=4)
    with Image.open(alone) as sheet:
        assert sheet.crop((left, top, left + TILE, top + TILE)).tobytes() == tiles[0]
    assert len(heading.getcolors() or []) > 2  # ink
    again = draw_samples(both, tmp_path / "again.png", columns=8, seed=4)
    assert again.read_bytes() == out.read_bytes()
    other = draw_samples(both, tmp_path / "other.png", columns=8, seed=5)
    assert other.read_bytes() != out.read_bytes()


@pytest.mark.parametrize("columns", [0, -1])
def test_samples_need_a_column(columns: int, checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="columns must be at least 1"):
        draw_samples({"dit": checkpoints / "dit"}, tmp_path / "samples.png", columns=columns)


def test_samples_need_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        draw_samples({"dit": tmp_path}, tmp_path / "samples.png")


def test_names_stand_whole_beside_their_panels(tmp_path: Path) -> None:
    folders = {"mine": write_checkpoint(tmp_path / "mine", "dit", class_names=PETS, sampling={"steps": 1})}
    with Image.open(draw_samples(folders, tmp_path / "samples.png", columns=1)) as sheet:
        pixels = sheet.convert("L").load()
        assert pixels is not None
        edge = [pixels[x, y] for x in (0, 1, sheet.width - 2, sheet.width - 1) for y in range(sheet.height)]
    assert set(edge) == {255}
