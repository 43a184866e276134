"""Loss curves and sample grids of training runs."""

import csv
import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from models.checkpoint import ModelConfig
from models.files import replace_file
from models.sampling import Guidance, sample, to_uint8

logger = logging.getLogger(__name__)

SMOOTHING = 0.99
MEASURES = "measures.csv"
NOISE = ("least noise", "less noise", "more noise", "most noise")  # quarters of the noise times of training
MEASURED = ("step", "held_out_loss", "training_loss", "copies", *(f"held_out_{i + 1}" for i in range(len(NOISE))))
LABEL_WIDTH = 28  # pixels beside each row of a grid, at least


class LossLog:
    """loss.csv, one row a step, and its plot. A resumed run first drops the rows beyond its step."""

    FIELDS: tuple[str, ...] = ("step", "loss", "lr", "seconds")

    def __init__(self, path: Path, step: int):
        self.path, self.smoothed = path, float("nan")
        keep_rows(path, self.FIELDS, step)

    def add(self, step: int, loss: Tensor, lr: float, seconds: float) -> None:
        value = loss.item()
        old = value if np.isnan(self.smoothed) else self.smoothed
        self.smoothed = SMOOTHING * old + (1 - SMOOTHING) * value
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([step, f"{value:.6f}", f"{lr:.3e}", f"{seconds:.1f}"])

    def plot(self, title: str) -> Path:
        """Write loss.png beside the CSV."""
        return plot_losses(title, self.path)


def keep_rows(path: Path, fields: tuple[str, ...], step: int) -> list[list[str]]:
    """Write the file anew with its rows up to a step, and return those."""
    rows = [row for row in read_rows(path, fields) if int(row[0]) <= step] if path.exists() else []
    text = io.StringIO()
    csv.writer(text).writerows([fields, *rows])
    replace_file(path, text.getvalue().encode())
    return rows


def read_losses(path: Path) -> list[list[str]]:
    """The rows of a loss.csv, see read_rows."""
    return read_rows(path, LossLog.FIELDS)


def read_rows(path: Path, fields: tuple[str, ...]) -> list[list[str]]:
    """Rows of numbers with rising steps. Damaged lines, as after a power cut, are dropped with a warning."""
    rows, damaged, step = [], 0, 0
    lines = path.read_text("utf-8-sig", errors="replace").splitlines()
    for line in lines:
        row = line.split(",")
        if row == list(fields):
            continue
        if not is_row(row, fields) or int(row[0]) <= step:
            damaged += 1
            continue
        step = int(row[0])
        rows.append(row)
    if damaged:
        logger.warning("%s: %d of %d lines are damaged and dropped", path, damaged, len(lines))
    return rows


def is_row(row: list[str], fields: tuple[str, ...]) -> bool:
    """Whether it holds a number for every field, the step a whole one."""
    try:
        return len(row) == len(fields) and int(row[0]) > 0 and all(math.isfinite(float(x)) for x in row)
    except ValueError:
        return False


def plot_losses(title: str, path: Path) -> Path:
    """Draw a loss.csv, smoothed over 200 steps, and the held-out losses beside it, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    if rows := read_losses(path):  # else all of it was damaged
        steps, losses = np.array([(int(row[0]), float(row[1])) for row in rows]).T
        window = max(1, min(200, len(losses) // 5))
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, label="training")
    measures = path.with_name(MEASURES)
    if rows := read_rows(measures, MEASURED) if measures.exists() else []:
        steps, held_out, _, _, *quarters = np.array(rows, dtype=float).T
        axes.plot(steps, held_out, marker=".", label="held out")
        for noise, losses in zip(NOISE, quarters, strict=True):
            axes.plot(steps, losses, lw=0.8, label=f"held out, {noise}")
    axes.set(xlabel="step", ylabel="loss", title=title, yscale="log", xscale="log")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    out = path.with_suffix(".png")
    figure.savefig(out, dpi=120)
    plt.close(figure)
    return out


def save_sample_grid(
    path: Path, model: nn.Module, config: ModelConfig, columns: int, *, seed: int = 0, scale: int = 2
) -> Path:
    """Write a grid with a labelled row for each class, sampled with the checkpoint's defaults."""
    classes = config.num_classes
    labels = torch.arange(classes).repeat_interleave(columns)
    device = next(model.parameters()).device
    images = generate(model, config, labels.to(device), torch.arange(len(labels)).to(device) + seed)
    draw_grid(path, to_uint8(images).cpu(), config.class_names, columns, scale)
    return path


@dataclass(frozen=True)
class Sampling:
    """How images are sampled."""

    sampler: str
    steps: int
    guidance: Guidance
    spacing: str = "trailing"


def sampling_of(
    config: ModelConfig, *, sampler: str | None = None, steps: int | None = None, guidance: float | None = None
) -> Sampling:
    """Given options, else the checkpoint's defaults. Raises ValueError: the guidance scale is not finite."""
    given = {"sampler": sampler, "steps": steps, "guidance": guidance}
    usual: dict[str, Any] = {"steps": config.steps_of(sampler)} if sampler else {}
    own = config.default_sampling | usual | {name: value for name, value in given.items() if value is not None}
    if not math.isfinite(own["guidance"]):
        raise ValueError(f"guidance must be a finite number, got {own['guidance']}")
    guided = Guidance(own["guidance"], *own["guidance_interval"], trained=config.guidance_range)
    return Sampling(own["sampler"], own["steps"], guided, own["spacing"])


def generate(
    model: nn.Module, config: ModelConfig, labels: Tensor, seeds: Tensor, sampling: Sampling | None = None
) -> Tensor:
    """Images [n, C, H, W] by the plain loop, by default sampled as the checkpoint says. labels, seeds: [n]."""
    how = sampling or sampling_of(config)
    table = config.table(how.sampler, how.steps, how.spacing)
    shape, null_label = config.image_shape, config.num_classes
    return sample(model, table, labels, seeds, shape, guidance=how.guidance, null_label=null_label)


def draw_grid(path: Path, images: Tensor, row_names: list[str], columns: int, scale: int = 2) -> None:
    """Write a PNG. images: [rows * columns, C, H, W] uint8, row by row; row_names are written left of the rows."""
    height, width = images.shape[2:]
    pictures = images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    sheet = Image.fromarray(tiled(pictures.reshape(-1, columns, height, width, 3)))
    sheet = sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)
    size = 14 if max(map(len, row_names)) < 3 else 10
    left = label_width(row_names, size, LABEL_WIDTH)
    canvas = Image.new("RGB", (sheet.width + left, sheet.height), "white")
    canvas.paste(sheet, (left, 0))
    draw = ImageDraw.Draw(canvas)
    for row, name in enumerate(row_names[: len(images) // columns]):
        middle = int((row + 0.5) * height * scale)
        draw.text((left // 2, middle), name, fill="black", anchor="mm", font_size=size)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def tiled(pictures: np.ndarray, apart: int = 0) -> np.ndarray:
    """One picture of [R, K, H, W, 3] uint8, a row a row, with white pixels right of and below each."""
    spaced = np.pad(pictures, ((0, 0), (0, 0), (0, apart), (0, apart), (0, 0)), constant_values=255)
    rows, columns, height, width, _ = spaced.shape
    return spaced.swapaxes(1, 2).reshape(rows * height, columns * width, 3)


def label_width(names: list[str], font_size: int, least: int) -> int:
    """Pixels in which every name fits with a margin."""
    font = ImageFont.load_default(font_size)
    return max(least, *(math.ceil(font.getlength(name)) + 6 for name in names))
