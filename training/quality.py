"""Evaluate checkpoints: figures with intervals, as JSON and as one HTML page."""

import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.checkpoint import CheckpointError, ModelConfig, load_checkpoint
from models.files import replace_file
from models.schedule import NUM_TIMESTEPS
from training.config import HOLD_OUT, LATER
from training.data import FROM_FILES, Data, DataError, counts, fingerprint, load_data, take_subset
from training.distances import compare_neighbours, images_per_class, sample_balanced, save_neighbours_picture
from training.graded import grade_samples, losses
from training.info import config_info
from training.judge import load_judges
from training.machine import command_line, describe_machine, git_commit
from training.quality_page import answer, page, verdict
from training.report import Sampling, sampling_of
from training.samples import draw_samples

JUDGES = 3
LEAST = 4  # held-out images of every class: the matched draws need two halves of two
ROWS = (1, 8)  # batch sizes of the timed forwards
REPEATS = 20  # timed forwards of each size


@dataclass(frozen=True)
class Request:
    """Options of an evaluation. None takes the checkpoint's own value."""

    data: str | None = None
    data_path: Path | None = None
    architecture: str | None = None  # `package.module:Class` of networks that are not this project's
    images: int = 500
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    judges: Path = Path("runs/judges")
    threads: int | None = None


def evaluate_checkpoints(folders: dict[str, Path], out: Path, request: Request) -> list[tuple[str, str]]:
    """Measure the checkpoints in `folders`, by name; write the page `out`, and its figures as JSON beside it.

    Returns (verdict, sentence) for every checkpoint.

    Raises:
        CheckpointError: a checkpoint cannot be read, or its classes or image size differ from the data's.
        DataError: the data cannot be read, or have too few held-out pictures.
        ValueError: too few images, checkpoints of different data, sampling options that do not exist, or an `out`
            that is a folder or ends in .json.
    """
    check_out(out)
    if request.threads is not None:
        if not 1 <= request.threads <= 1024:
            raise ValueError(f"threads must lie in 1..1024, got {request.threads}")
        torch.set_num_threads(request.threads)
    loaded = {name: load_checkpoint(folder, request.architecture) for name, folder in folders.items()}
    cases = cases_of({name: config for name, (_, config) in loaded.items()}, request)
    out.parent.mkdir(parents=True, exist_ok=True)
    times = step_times({name: (model, config.image_shape) for name, (model, config) in loaded.items()})
    figures: dict[str, Any] = {"machine": describe_machine(), "commit": git_commit(), "checkpoints": {}}
    figures["command"] = command_line()
    with tempfile.TemporaryDirectory() as place:
        pictures: dict[str, bytes] = {}
        for name, (model, config) in loaded.items():
            data, how = cases[name]
            picture = Path(place) / "pairs.png"
            found = measure(model, config, data, how, request, picture)
            facts = {"folder": str(folders[name]), "step_ms": times[name], **facts_of(config, data, request)}
            figures["checkpoints"][name] = facts | found
            pictures[f"pairs {name}"] = picture.read_bytes()
        drawn = {name: getattr(request, name) for name in ("architecture", "sampler", "steps", "guidance")}
        pictures["samples"] = draw_samples(folders, Path(place) / "samples.png", **drawn).read_bytes()
    figures = json.loads(json.dumps(figures, default=asdict))
    write(out, figures, pictures)
    return [(verdict(facts)[0], answer(name, facts)) for name, facts in figures["checkpoints"].items()]


def check_out(out: Path) -> None:
    """The figures are written beside the page, with the suffix .json. Raises ValueError."""
    if out.suffix.lower() == ".json" or out.is_dir():
        what = "a folder" if out.is_dir() else "the name of its figures"
        raise ValueError(f"--out must be a page to write, as in runs/evaluation.html: {out} is {what}")


def cases_of(configs: dict[str, ModelConfig], request: Request) -> dict[str, tuple[Data, Sampling]]:
    """Data and sampling of each checkpoint, by name; checks all options before judges are trained for minutes."""
    check_one_source(configs, request)
    cases = {}
    for name, config in configs.items():
        images_per_class(request.images, config.num_classes)
        how = sampling_of(config, sampler=request.sampler, steps=request.steps, guidance=request.guidance)
        config.table(how.sampler, how.steps, how.spacing)
        cases[name] = data_of(name, config, request), how
    return cases


def write(out: Path, figures: dict[str, Any], pictures: dict[str, bytes]) -> None:
    replace_file(out.with_suffix(".json"), (json.dumps(figures, indent=2) + "\n").encode())
    replace_file(out, page(figures, pictures).encode(errors="backslashreplace"))  # a path may be no text


def data_of(name: str, config: ModelConfig, request: Request) -> Data:
    """The data to measure with; `train` is the subset that the checkpoint learnt from, if that is known.

    If too few pictures are held out to train a judge, `judge` is `train`.
    """
    chosen, known = source_of(config, request)
    if chosen in FROM_FILES and not request.data and request.data_path is None:
        pictures = "a folder of pictures" if chosen == "folder" else chosen
        raise DataError(f"{name} was trained on {pictures}: name it with --data-path, to measure {name} with it")
    channels, height, width = config.image_shape
    if height != width:
        raise CheckpointError(f"{name} draws images of {width}x{height} pixels, and data are square")
    try:
        data = load_data(chosen, request.data_path, height, channels, known["hold_out"])
    except DataError as error:
        raise DataError(f"{error} ({name} is measured with {chosen})") from error
    if data.class_names != config.class_names:
        raise CheckpointError(f"{name} has the classes {config.class_names}, the data {data.class_names}")
    if not len(data.test):
        raise DataError(f"nothing is held out of {request.data_path}: train {name} with --hold-out {HOLD_OUT}")
    check_held_out(data, f"train {name} with a larger --hold-out")
    data = replace(data, train=take_subset(data.train, known["subset"]))
    return data if len(data.judge) else replace(data, judge=data.train)


def check_held_out(data: Data, other_way: str) -> None:
    """Raises DataError: a class has fewer than LEAST held-out pictures; other_way: advice for the message."""
    if min(least := counts(data.test)) < LEAST or len(least) < len(data.class_names):
        raise DataError(
            f"{LEAST} held-out pictures of every class are needed, there are {least}: {LEAST / HOLD_OUT:.0f} "
            f"pictures of a class give {LEAST} with the default of hold_out, {HOLD_OUT}; or {other_way}"
        )


def source_of(config: ModelConfig, request: Request) -> tuple[str, dict[str, Any]]:
    """Name of the data to measure with, and the options of the run that read them: hold_out and subset."""
    recipe = recipe_of(config)
    own = recipe.get("data", "digits")
    chosen = request.data or own
    return chosen, LATER | (recipe if chosen == own else {"hold_out": HOLD_OUT})  # hold_out is of a folder only


def check_one_source(configs: dict[str, ModelConfig], request: Request) -> None:
    """Raises ValueError: the checkpoints would be measured with different held-out pictures."""
    sources = {}
    for name, config in configs.items():
        chosen, known = source_of(config, request)
        sources[name] = f"{chosen} (hold_out {known['hold_out']})" if chosen == "folder" else chosen
    first, *others = sources
    for name in others:
        if sources[name] != sources[first]:
            raise ValueError(
                f"checkpoints of one page are measured with the same data, but {first} with {sources[first]} and "
                f"{name} with {sources[name]}: evaluate them one by one, each with an --out of its own"
            )


def recipe_of(config: ModelConfig) -> dict[str, Any]:
    """The recipe in a checkpoint that a run of this project wrote; {} for others."""
    recipe = config.training.get("recipe")
    return recipe if isinstance(recipe, dict) else {}


def facts_of(config: ModelConfig, data: Data, request: Request) -> dict[str, Any]:
    """The facts about a checkpoint and its data that need no measurement."""
    info, trained_on = config_info(config, request.architecture), config.training.get("train_sha256")
    source, _ = source_of(config, request)
    return {
        "sha256": config.sha256,
        "parameters": info["parameters"],
        "flop_per_row": info["flops"],
        "training": config.training,
        "data": source,
        "data_path": str(request.data_path) if request.data_path and source in FROM_FILES else None,
        "class_names": data.class_names,
        "train_images": len(data.train),
        "same_data": trained_on == fingerprint(data.train) if trained_on else None,
        "held_out": len(data.test),
        "judge_images": len(data.judge),
        "judge_saw_training": data.judge is data.train,
    }


def measure(
    model: nn.Module, config: ModelConfig, data: Data, how: Sampling, request: Request, picture: Path
) -> dict[str, Any]:
    """Figures of one checkpoint; also writes `picture`, the samples nearest to training pictures."""
    pairs = load_judges(request.judges, data, JUDGES)
    judges = [judge for judge, _ in pairs]
    generated = sample_balanced(model, config, request.images, how)
    save_neighbours_picture(picture, generated.images, data.train.images)
    return {
        "samples": len(generated),
        "sampling": asdict(how),
        "judges": [card for _, card in pairs],
        "accuracy_train": statistics.fmean(judge.accuracy(data.train) for judge in judges),
        **grade_samples(generated, data, judges),
        "neighbours": asdict(compare_neighbours(generated.images, data.test.images, data.train.images)),
        "loss": losses(model, config, data),
    }


@torch.no_grad()
def step_times(models: dict[str, tuple[nn.Module, tuple[int, int, int]]]) -> dict[str, dict[str, float]]:
    """Median milliseconds of one forward, by model and number of rows. models: network and image shape.

    Models and sizes alternate, so that a disturbance of the machine affects all of them.
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
    """Seconds of one forward on the CPU."""
    x, t, y = torch.zeros(rows, *image_shape), torch.full((rows,), NUM_TIMESTEPS / 2), torch.zeros(rows).long()
    started = time.perf_counter()
    model(x, t, y)
    return time.perf_counter() - started
