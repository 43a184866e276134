"""Both shipped models measured under the same conditions: figures to JSON, a page and pictures beside it."""

import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.checkpoint import ModelConfig, load_checkpoint
from models.schedule import NUM_TIMESTEPS
from training.comparison_page import missed, page
from training.data import Data, load_data
from training.evaluate import grade, images_per_class, sample_balanced, save_neighbours_picture
from training.info import model_info
from training.judge import Judge, load_judge
from training.machine import describe_machine
from training.report import plot_losses, sampling_of
from training.samples import draw_samples

MODELS = ("dit", "unet")
ROWS = (1, 8)  # forward rows whose step time is measured
REPEATS = 20


def compare(checkpoints: Path, out: Path, images: int = 1000, judge_folder: Path = Path("runs/judge")) -> list[str]:
    """Measure checkpoints/dit and checkpoints/unet on the digits and write `out`, a Markdown page.

    Beside it: the raw figures as JSON, samples.png, the generated images nearest to training images, and loss.png
    where a loss.csv stands beside the checkpoints. The judge is trained where judge_folder does not hold one.
    Returns a phrase for every bar that a model misses.

    Raises:
        CheckpointError: a checkpoint that cannot be read.
        ValueError: too few images to grade.
    """
    loaded = {name: load_checkpoint(checkpoints / name) for name in MODELS}
    data = load_data("digits")
    images_per_class(images, len(data.class_names))  # refused before minutes are spent on the judge
    judge, card = load_judge(judge_folder, data)
    folder = out.parent
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"machine": describe_machine(), "judge": card, "models": {}}
    for name, (model, config) in loaded.items():
        picture = folder / f"neighbours-{name}.png"
        figures["models"][name] = model_figures(model, config, judge, data, images, picture)
    shapes = {name: (model, config.image_shape) for name, (model, config) in loaded.items()}
    for name, milliseconds in step_times(shapes).items():
        figures["models"][name]["step_ms"] = milliseconds
    logs = {name: checkpoints / name / "loss.csv" for name in MODELS}
    if all(path.is_file() for path in logs.values()):
        plot_losses(logs, folder / "loss.png")
    draw_samples(checkpoints, folder / "samples.png", list(MODELS))
    figures["missed"] = missed(figures["models"])
    out.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")
    out.write_text(page(figures))
    return figures["missed"]


def model_figures(
    model: nn.Module, config: ModelConfig, judge: Judge, data: Data, images: int, picture: Path
) -> dict[str, Any]:
    """Size, training facts and quality of one model."""
    sampling = sampling_of(config)
    generated = sample_balanced(model, config, images, sampling)
    save_neighbours_picture(picture, generated.images, data.train.images)
    info = model_info(config.architecture, config.arguments | {"num_classes": config.num_classes})
    return {
        "arguments": config.arguments,
        "parameters": info["parameters"],
        "seed_parameters": model_info(config.architecture, {})["parameters"],
        "gflop_per_row": info["flops"] / 1e9,
        "training": config.training,
        "evaluation": asdict(grade(generated, judge, data, sampling)),
    }


@torch.no_grad()
def step_times(models: dict[str, tuple[nn.Module, tuple[int, int, int]]]) -> dict[str, dict[str, float]]:
    """Median milliseconds of one forward, by model and number of rows. models: network and image shape.

    Models and sizes take turns, so that a disturbance of the machine meets all of them.
    """
    cases = [(name, rows) for name in models for rows in ROWS]
    times: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for repeat in range(REPEATS + 2):
        for name, rows in cases:
            seconds = time_forward(*models[name], rows)
            if repeat >= 2:  # the warm-up rounds do not count
                times[name, rows].append(1000 * seconds)
    return {name: {str(rows): statistics.median(times[name, rows]) for rows in ROWS} for name in models}


def time_forward(model: nn.Module, image_shape: tuple[int, int, int], rows: int) -> float:
    """Seconds of one forward."""
    device = next(model.parameters()).device
    x = torch.zeros(rows, *image_shape, device=device)
    t = torch.full((rows,), NUM_TIMESTEPS / 2, device=device)
    y = torch.zeros(rows, dtype=torch.long, device=device)
    synchronize(device)
    started = time.perf_counter()
    model(x, t, y)
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
