"""Loss logs, curves and grids of samples."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFont

from models.checkpoint import ModelConfig, load_checkpoint
from models.sampling import Guidance
from training.report import (
    LABEL_WIDTH,
    MEASURED,
    MEASURES,
    LossLog,
    draw_grid,
    generate,
    plot_losses,
    sampling_of,
    save_sample_grid,
)


def rows(path: Path) -> list[tuple[str, ...]]:
    with path.open(newline="") as file:
        return [tuple(row) for row in csv.reader(file)]


def test_a_resumed_log_drops_the_rows_beyond_its_step(tmp_path: Path) -> None:
    path = tmp_path / "loss.csv"
    log = LossLog(path, 0)
    for step in range(1, 6):
        log.add(step, torch.tensor(1 / step), 1e-3, float(step))
    LossLog(path, 3).add(4, torch.tensor(9.0), 1e-3, 4.0)
    assert [row[:2] for row in rows(path)] == [
        ("step", "loss"), ("1", "1.000000"), ("2", "0.500000"), ("3", "0.333333"), ("4", "9.000000")
    ]  # fmt: skip


def test_a_fresh_run_forgets_an_old_log(tmp_path: Path) -> None:
    LossLog(tmp_path / "loss.csv", 0).add(1, torch.tensor(1.0), 1e-3, 1.0)
    LossLog(tmp_path / "loss.csv", 0)
    assert len(rows(tmp_path / "loss.csv")) == 1


def test_the_shown_loss_is_smoothed(tmp_path: Path) -> None:
    log = LossLog(tmp_path / "loss.csv", 0)
    log.add(1, torch.tensor(1.0), 1e-3, 1.0)
    assert log.smoothed == 1.0
    log.add(2, torch.tensor(2.0), 1e-3, 2.0)
    assert log.smoothed == pytest.approx(1.01)


@pytest.mark.parametrize("steps", [1, 3, 2000])
def test_losses_are_plotted(steps: int, tmp_path: Path) -> None:
    path = tmp_path / "loss.csv"
    lines = "".join(f"{step},{1 / step},1e-3,0.1\n" for step in range(1, steps + 1))
    path.write_text("step,loss,lr,seconds\n" + lines)
    alone = plot_losses("dit", path).read_bytes()
    with Image.open(tmp_path / "loss.png") as image:
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 20) or []) > 10  # curves, not an empty sheet
    (tmp_path / MEASURES).write_text(f"{','.join(MEASURED)}\n{steps},0.3,0.2,0.0,0.1,0.2,0.4,0.5\n")
    assert plot_losses("dit", path).read_bytes() != alone


def test_a_grid_holds_each_image_at_its_place(tmp_path: Path) -> None:
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 4, 4) * 40
    draw_grid(tmp_path / "new" / "grid.png", images, ["a", "b"], columns=3, scale=2)
    with Image.open(tmp_path / "new" / "grid.png") as grid:
        assert grid.size == (LABEL_WIDTH + 3 * 8, 2 * 8)
        seen = [grid.getpixel((LABEL_WIDTH + 8 * (i % 3) + 4, 8 * (i // 3) + 4)) for i in range(6)]
    assert seen == [(40 * i,) * 3 for i in range(6)]


def test_a_sample_grid_shows_what_generate_returns(checkpoints: Path, tmp_path: Path) -> None:
    model, config = load_checkpoint(checkpoints / "dit")
    save_sample_grid(tmp_path / "grid.png", model, config, columns=2, seed=5, scale=1)
    image = generate(model, config, torch.tensor([3]), torch.tensor([5 + 6]))[0]  # row 3, column 0
    with Image.open(tmp_path / "grid.png") as grid:
        pixel = grid.getpixel((LABEL_WIDTH + 10, 3 * 32 + 20))
    expected = ((image[:, 20, 10].clamp(-1, 1) + 1) * 127.5).round().int().tolist()
    assert list(pixel if isinstance(pixel, tuple) else ()) == expected


@pytest.mark.parametrize(
    ("stored", "given", "expected"),
    [
        ({}, {}, ("dpmpp_2m", 10, Guidance(1.5))),
        ({"steps": 7, "guidance": 2.0, "sampler": "ddim"}, {}, ("ddim", 7, Guidance(2.0))),
        (
            {"steps": 7, "guidance_interval": [0.1, 0.9]},
            {"guidance": 3.0},
            ("dpmpp_2m", 7, Guidance(3.0, 0.1, 0.9)),
        ),
        ({"steps": 7}, {"steps": 3, "sampler": "euler"}, ("euler", 3, Guidance(1.5))),
        ({"steps": 1}, {"sampler": "ddim"}, ("ddim", 10, Guidance(1.5))),
        ({"steps": 1}, {"sampler": "consistency"}, ("consistency", 2, Guidance(1.5))),
        ({"steps": 1, "sampler": "ddim"}, {"sampler": "ddim"}, ("ddim", 1, Guidance(1.5))),
    ],
    ids=["project", "checkpoint", "interval", "given", "another sampler", "jumps", "its own sampler"],
)
def test_sampling_takes_what_is_given_then_what_the_checkpoint_says(
    stored: dict, given: dict, expected: tuple
) -> None:
    how = sampling_of(ModelConfig("dit", {}, sampling=stored), **given)
    assert (how.sampler, how.steps, how.guidance) == expected


@pytest.mark.parametrize("guidance", [float("nan"), float("inf")])
def test_guidance_must_be_finite(guidance: float) -> None:
    with pytest.raises(ValueError, match="guidance must be a finite number"):
        sampling_of(ModelConfig("dit", {}), guidance=guidance)


HEADER = "step,loss,lr,seconds\n"


@pytest.mark.parametrize(
    ("content", "steps", "damaged"),
    [
        (HEADER + "1,0.5,1e-3,0.1\n2,0.4,1e-3,0.2\n\0\0", [1, 2], 1),
        (HEADER + "1,0.5,1e-3,0.1\n2,0.4", [1], 1),
        ("1,0.5,1e-3,0.1\n2,0.4,1e-3,0.2\n", [1, 2], 0),
        ("\ufeff" + HEADER + "1,0.5,1e-3,0.1\r\n", [1], 0),
        (HEADER + "1,0.5,1e-3,0.1\n1,0.6,1e-3,0.1\n2,0.4,1e-3,0.2\n", [1, 2], 1),
        (HEADER + "1;0,5;1e-3;0,1\n1,nan,1e-3,0.1\n-1,0.5,1e-3,0.1\nx,0.5,1e-3,0.1\n", [], 4),
        ("", [], 0),
    ],
    ids=["zeros", "cut", "no-header", "byte-order-mark", "twice", "no-numbers", "empty"],
)
def test_damaged_lines_of_a_log_are_dropped_with_a_warning(
    content: str, steps: list[int], damaged: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "loss.csv"
    path.write_text(content, "utf-8")
    log = LossLog(path, 9)
    log.add(10, torch.tensor(1.0), 1e-3, 4.0)
    assert [row[0] for row in rows(path)] == ["step", *map(str, steps), "10"]
    assert (f"{path}: {damaged} of " in caplog.text) is bool(damaged)
    assert log.plot("dit").exists()


def test_names_stand_whole_beside_their_rows(tmp_path: Path) -> None:
    names = ["maison jaune", "zielony dom", "a"]
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    draw_grid(tmp_path / "grid.png", images, names, columns=1)
    with Image.open(tmp_path / "grid.png") as grid:
        left = grid.width - 64
        assert left >= max(ImageFont.load_default(10).getlength(name) for name in names)
        inked = [x for x in range(left) if any(grid.getpixel((x, y)) != (255, 255, 255) for y in range(64))]
    assert inked[0] > 0  # nothing is cut at the border
    assert inked[-1] < left - 1
