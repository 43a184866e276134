"""Checkpoints measured under the same conditions: figures to JSON, a page and pictures beside it."""

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
from training.info import config_info, model_info
from training.judge import Judge, load_judge
from training.machine import describe_machine
from training.report import plot_losses, sampling_of
from training.samples import draw_samples

ROWS = (1, 8)  # forward rows whose step time is measured
REPEATS = 20


def compare(
    folders: dict[str, Path], out: Path, images: int = 1000, judge_folder: Path = Path("runs/judge")
) -> list[str]:
    """Measure the checkpoints `folders`, by name, and write `out`, a Markdown page.

    Beside it: the raw figures as JSON, samples.png, the generated images nearest to training images, and loss.png
    where a loss.csv stands beside the checkpoints. Only models of the digits are graded. Their classifier
    is trained if judge_folder does not hold it. Returns a phrase for every bar that a model misses.

    Raises:
        CheckpointError: a checkpoint that cannot be read.
        ValueError: fewer than two checkpoints, or too few images to grade.
    """
    if len(folders) < 2:
        raise ValueError(f"compare needs at least two checkpoints, got {', '.join(folders)}")
    loaded = {name: load_checkpoint(folder) for name, folder in folders.items()}
    reasons = {name: why_not_graded(config) for name, (_, config) in loaded.items()}
    judge: tuple[Judge, Data] | None = None
    figures: dict[str, Any] = {"machine": describe_machine(), "judge": None, "models": {}}
    if not all(reasons.values()):
        data = load_data("digits")
        images_per_class(images, len(data.class_names))  # refused before minutes are spent on the judge
        grader, figures["judge"] = load_judge(judge_folder, data)
        judge = grader, data
    folder = out.parent
    folder.mkdir(parents=True, exist_ok=True)
    for name, (model, config) in loaded.items():
        facts = model_facts(config) | {"evaluation": None, "not_graded": reasons[name]}
        if judge and not reasons[name]:
            facts["evaluation"] = evaluation_of(model, config, *judge, images, folder / f"neighbours-{name}.png")
        figures["models"][name] = facts
    for name, milliseconds in step_times({n: (m, c.image_shape) for n, (m, c) in loaded.items()}).items():
        figures["models"][name]["step_ms"] = milliseconds
    logs = {name: path / "loss.csv" for name, path in folders.items()}
    if all(path.is_file() for path in logs.values()):
        plot_losses(logs, folder / "loss.png")
    draw_samples(folders, folder / "samples.png")
    write_page(out, figures)
    return figures["missed"]


def write_page(out: Path, figures: dict[str, Any]) -> None:
    figures["missed"] = missed(figures["models"])
    raw = out.with_suffix(".json")
    raw.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    out.write_text(page(figures, raw.name), "utf-8")


def why_not_graded(config: ModelConfig) -> str:
    """Why the classifier of digits cannot grade a model, in one phrase; empty where it can."""
    data = config.training.get("recipe", {}).get("data", "digits")
    if data != "digits":
        return f"it was trained on {data}, and only models of the digits can be graded"
    if config.class_names != [str(digit) for digit in range(10)]:
        return "its classes are not the ten digits, and only models of the digits can be graded"
    if config.image_shape != (3, 32, 32):
        return f"its images have the shape {config.image_shape}, and the classifier reads (3, 32, 32)"
    return ""


def model_facts(config: ModelConfig) -> dict[str, Any]:
    """Size and training facts."""
    info = config_info(config)
    return {
        "arguments": config.arguments,
        "parameters": info["parameters"],
        "default_parameters": model_info(config.architecture, {})["parameters"],
        "gflop_per_row": info["flops"] / 1e9,
        "training": config.training,
    }


def evaluation_of(
    model: nn.Module, config: ModelConfig, judge: Judge, data: Data, images: int, picture: Path
) -> dict[str, Any]:
    """Quality of one model; draws the picture of its nearest neighbours."""
    how = sampling_of(config)
    generated = sample_balanced(model, config, images, how)
    save_neighbours_picture(picture, generated.images, data.train.images)
    return asdict(grade(generated, judge, data, how))


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
