"""What a run leaves for people to look at: a loss curve, sample grids."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from models.checkpoint import ModelConfig
from models.samplers import Guidance, build_table, sample, to_uint8
from models.schedule import NoiseSchedule, Prediction

SMOOTHING = 0.99
LABEL_WIDTH = 28  # pixels beside each row of a grid


class LossLog:
    """loss.csv, one row a step, and its plot. A resumed run first drops the rows beyond its step."""

    FIELDS: tuple[str, ...] = ("step", "loss", "lr", "seconds")

    def __init__(self, path: Path, step: int):
        self.path, self.smoothed = path, float("nan")
        kept = [row for row in self._read() if int(row["step"]) <= step]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.FIELDS)
            writer.writeheader()
            writer.writerows(kept)

    def add(self, step: int, loss: Tensor, lr: float, seconds: float) -> None:
        value = loss.item()
        old = value if np.isnan(self.smoothed) else self.smoothed
        self.smoothed = SMOOTHING * old + (1 - SMOOTHING) * value
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([step, f"{value:.6f}", f"{lr:.3e}", f"{seconds:.1f}"])

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def plot(self, title: str) -> Path:
        """Write loss.png beside the CSV."""
        return plot_losses({title: self.path}, self.path.with_suffix(".png"))


def plot_losses(logs: dict[str, Path], out: Path) -> Path:
    """One curve a loss.csv, smoothed over 200 steps, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, path in logs.items():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        losses = np.array([float(row["loss"]) for row in rows])
        window = max(1, min(200, len(losses) // 5))
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        axes.plot(np.arange(window, len(losses) + 1), smooth, label=name)
    axes.set(xlabel="step", ylabel="loss", yscale="log", xscale="log")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    figure.savefig(out, dpi=120)
    plt.close(figure)
    return out


def save_sample_grid(
    path: Path, model: nn.Module, config: ModelConfig, columns: int, *, seed: int = 0, scale: int = 2
) -> Path:
    """A row a class, labelled; sampled as the service samples by default."""
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


def sampling_of(
    config: ModelConfig, *, sampler: str | None = None, steps: int | None = None, guidance: float | None = None
) -> Sampling:
    """What is given, else what the checkpoint says, else the project's defaults. guidance: its scale."""
    given = {"sampler": sampler, "steps": steps, "guidance": guidance}
    own = config.default_sampling | {name: value for name, value in given.items() if value is not None}
    if not math.isfinite(own["guidance"]):
        raise ValueError(f"guidance must be a finite number, got {own['guidance']}")
    return Sampling(own["sampler"], own["steps"], Guidance(own["guidance"], *own["guidance_interval"]))


def generate(
    model: nn.Module, config: ModelConfig, labels: Tensor, seeds: Tensor, sampling: Sampling | None = None
) -> Tensor:
    """Images [n, C, H, W] by the plain loop, by default sampled as the checkpoint says. labels, seeds: [n]."""
    how = sampling or sampling_of(config)
    table = build_table(NoiseSchedule(config.schedule), Prediction(config.prediction), how.sampler, how.steps)
    shape, null_label = config.image_shape, config.num_classes
    return sample(model, table, labels, seeds, shape, guidance=how.guidance, null_label=null_label)


def draw_grid(path: Path, images: Tensor, row_names: list[str], columns: int, scale: int = 2) -> None:
    """images: [rows * columns, C, H, W] uint8, row by row."""
    n, channels, height, width = images.shape
    rows = n // columns
    tiles = images.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = tiles.reshape(rows * height, columns * width, channels).numpy()
    sheet = Image.fromarray(pixels.repeat(3, axis=2) if channels == 1 else pixels)
    sheet = sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)
    canvas = Image.new("RGB", (sheet.width + LABEL_WIDTH, sheet.height), "white")
    canvas.paste(sheet, (LABEL_WIDTH, 0))
    draw = ImageDraw.Draw(canvas)
    for row, name in enumerate(row_names[:rows]):
        middle = int((row + 0.5) * height * scale)
        draw.text(
            (LABEL_WIDTH // 2, middle), name[:4], fill="black", anchor="mm", font_size=14 if len(name) < 3 else 10
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)
