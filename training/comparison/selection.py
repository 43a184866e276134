"""Which lines of runs.jsonl belong together: whole runs, pairs of one seed, seconds of a training image."""

import re
import statistics
from collections.abc import Callable
from typing import Any

Line = dict[str, Any]
Lines = list[Line]
Run = Lines  # the points of one training, in order, at its own guidance
Runs = dict[int, Run]  # by seed

DIT, UNET = "dit", "unet"
PAIR = (DIT, UNET)
TITLES = {DIT: "DiT", UNET: "UNet"}
MISSING = "not measured yet"
BUDGET = 96_000  # images of a run of D1 whose lines have no budget
PATCH, DEPTH = 4, 2  # the DiT's patch side in pixels; its depth if a timing has no settings


def of(
    lines: Lines, group: str, network: str | None = None, keep: Callable[[Line], bool] = lambda _: True
) -> Lines:
    return [x for x in lines if x["group"] == group and network in (None, x["network"]) and keep(x)]


def seed_of(line: Line) -> int:
    """Timings have no recipe, and name their seed in the name of the run."""
    if "recipe" in line:
        return line["recipe"]["seed"]
    found = re.search(r"seed(\d+)", line["run"])
    if not found:
        raise ValueError(f"run {line['run']}: neither its recipe nor its name has a seed")
    return int(found[1])


def trained_on(images: int) -> Callable[[Line], bool]:
    return lambda line: line.get("train_images") == images


def runs_of(lines: Lines, group: str, keep: Callable[[Line], bool] = lambda _: True) -> dict[str, Runs]:
    """The complete runs of a group for both networks: runs with every point that any line of the group has.

    Diverged or unfinished runs are left out. `budget` of a line is the number of images at the last point of its
    run; older lines of D1 lack it, and had 96,000.

    Raises:
        ValueError: two runs of one network and seed.
    """
    measured = of(lines, group, keep=lambda x: x["network"] in PAIR and "loss" in x and keep(x))
    points, found = sorted({line["images_seen"] for line in measured}), {network: {} for network in PAIR}
    for name in sorted({line["run"] for line in measured}):
        own = sorted((x for x in measured if x["run"] == name), key=lambda x: x["images_seen"])
        budget = own[-1].get("budget", BUDGET if group == "D1" else points[-1])
        if [line["images_seen"] for line in own] != points or points[-1] != budget:
            continue
        mine, seed = found[own[0]["network"]], seed_of(own[0])
        if twin := mine.get(seed):
            raise ValueError(f"runs {twin[0]['run']} and {name} have one seed, so which of them counts is open")
        mine[seed] = own
    return {network: dict(sorted(mine.items())) for network, mine in found.items()}


def paired(both: dict[str, Runs]) -> dict[int, tuple[Run, Run]]:
    """DiT and UNet of one seed."""
    return {seed: (run, both[UNET][seed]) for seed, run in both[DIT].items() if seed in both[UNET]}


def diverged(lines: Lines) -> list[str]:
    return sorted({line["run"] for line in lines if "diverged" in line})


def timings(lines: Lines, network: str) -> dict[int, Line]:
    """By seed, each a process of its own."""
    return {seed_of(x): x["timing"] for x in of(lines, "D8", network, lambda x: "timing" in x)}


def image_seconds(lines: Lines) -> dict[str, dict[int, float]]:
    """Of one training image, timed alone, by network and seed; empty where a network was not timed."""
    found = {n: {seed: t["train_image_seconds"] for seed, t in timings(lines, n).items()} for n in PAIR}
    return found if all(found.values()) else {}


def mean_of_judges(line: Line, figure: Callable[[Line], float]) -> float:
    return statistics.fmean(figure(judge) for judge in line["judges"])


def loss(line: Line) -> float:
    return line["loss"]["test"]["mean"]


def ratio(line: Line) -> float:
    return mean_of_judges(line, lambda judge: judge["frechet"]["ratio"])


def accuracy(line: Line) -> float:
    return mean_of_judges(line, lambda judge: judge["accuracy"])


def wrong(line: Line) -> float:
    """Share of samples of a wrong class, at least half a sample, because its logarithm is taken."""
    return max(1 - accuracy(line), 0.5 / line["samples"])


def kid(line: Line) -> float:
    """KID minus the KID of real images, mean over judges."""
    return mean_of_judges(line, lambda judge: judge["kid"] - judge["kid_real"])


def precision(line: Line) -> float:
    return mean_of_judges(line, lambda judge: judge["precision"])


def recall(line: Line) -> float:
    return mean_of_judges(line, lambda judge: judge["recall"])


def mean_steps(lines: Lines, network: str, rows: str) -> dict[int, float]:
    """Seconds of a step by pixels a side, mean over the processes."""
    found = [timing["step_seconds"] for timing in timings(lines, network).values()]
    sides = sorted({int(side) for steps in found for side, by_rows in steps.items() if rows in by_rows})
    return {side: statistics.fmean(x[str(side)][rows] for x in found if str(side) in x) for side in sides}


def attention_share(lines: Lines) -> dict[int, list[float]]:
    """Of the DiT's step of one row, by pixels a side: a number for each process."""
    found: dict[int, list[float]] = {}
    for line in of(lines, "D8", DIT, lambda x: "timing" in x):
        timing, depth = line["timing"], line.get("settings", {}).get("arguments", {}).get("depth", DEPTH)
        for side, by_rows in timing["step_seconds"].items():
            tokens = str((int(side) // PATCH) ** 2)
            if "1" in by_rows and tokens in timing.get("attention_seconds", {}):
                share = depth * timing["attention_seconds"][tokens] / by_rows["1"]
                found.setdefault(int(side), []).append(share)
    return dict(sorted(found.items()))
