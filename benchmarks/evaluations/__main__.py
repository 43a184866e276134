"""Measures image quality against rows an image, for the samplers, steps and guidance that a checkpoint allows.

    python -m benchmarks.evaluations search dit unet --minutes 60
    python -m benchmarks.evaluations report dit unet runs/few/dit-1
    python -m benchmarks.evaluations plot

search measures a grid of points. Then it measures the best ones again, with other seeds, and their neighbours. It
compares with the training digits. report measures the best points of the search with held-out digits and other
seeds, which had no part in the choice. A checkpoint without a search, such as another training of the same network,
is measured with the settings that its config.json names. Each measurement is made once, and is a line of
docs/evaluations.jsonl. plot writes docs/evaluations.md and its picture.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluations.points import LEAST_ACCURACY, Point, initial_points, means, neighbours, pareto_front
from benchmarks.evaluations.report import write_page
from benchmarks.int8 import CopyingNetwork
from models.checkpoint import load_checkpoint
from models.graph import trace
from models.sampling import to_uint8
from training.data import Data, Split, load_data
from training.distances import compare_features
from training.judge import Judge, load_judge
from training.machine import describe_machine, git_commit
from training.measure import copied
from training.report import generate

FILE = Path("docs/evaluations.jsonl")
IMAGES = {"search": 500, "report": 500}  # of one measurement, whose seeds are its own
FIRST_SEED = {"search": 10_000_000, "report": 20_000_000}
SEARCH_SETS = 4  # measurements of a point that stays on the front of the search
REPORT_SETS = 5  # measurements of each reported point
OLD_DEFAULT = {name: Point(10, guidance=scale, low=0.0, high=1.0) for name, scale in (("dit", 1.5), ("unet", 1.4))}
PROMISING_ACCURACY = 0.975  # a neighbour of a point with this accuracy may reach LEAST_ACCURACY
FIRST_ROWS = 5  # the search begins with points of about so many rows an image
BATCH = 8  # images; on a CPU a second image takes longer in a larger batch
PRECISION = "bf16"  # as the service runs the networks on a CPU; samplers stay in float32


class Evaluator:
    """Measures points of one checkpoint, and appends the results to a file."""

    def __init__(self, folder: Path, judge: Judge, data: Data, file: Path):
        model, self.config = load_checkpoint(folder)
        self.model = CopyingNetwork(trace(model, self.config), PRECISION, torch.get_num_threads())
        self.judge, self.data, self.file = judge, data, file
        self.name = self.config.architecture
        self.real = {
            stage: (judge.grade(split.images)[0], split.labels)
            for stage, split in (("search", data.train), ("report", data.test))
        }

    def lines(self, stage: str) -> list[dict[str, Any]]:
        """The measurements of these weights in one stage."""
        return [
            line
            for line in read_lines(self.file)
            if (line["model"], line["sha256"], line["stage"]) == (self.name, self.config.sha256, stage)
        ]

    def measure(self, point: Point, stage: str, number: int) -> None:
        """Add the line of a measurement, unless the file has it.

        number: of the measurement among those of the point; it decides the seeds and the draws.
        """
        if any(Point.from_line(line) == point and line["set"] == number for line in self.lines(stage)):
            return
        started = time.monotonic()
        generated = self.sample(point, IMAGES[stage], FIRST_SEED[stage] + number * IMAGES[stage])
        features, predicted = self.judge.grade(generated.images)
        frechet = compare_features(features, generated.labels, *self.real[stage], seed=number)
        line = {
            "model": self.name, "sha256": self.config.sha256, "stage": stage, "set": number, "point": asdict(point),
            "trained": self.config.training.get("recipe", {}).get("seed"), "tuned": self.config.is_few_step,
            "rows": point.rows(self.config), "images": len(generated),
            "accuracy": (predicted == generated.labels).double().mean().item(), "ratio": frechet.ratio,
            "copies": copied(generated.images, self.data.train.images),
            "commit": git_commit(), "machine": describe_machine(), "torch": torch.__version__,
        }  # fmt: skip
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        found = f"{line['rows']:3} rows: {100 * line['accuracy']:.1f} %, ratio {line['ratio']:.2f}"
        print(f"{self.name} {found}, {point}, {time.monotonic() - started:.0f} s", flush=True)

    def sample(self, point: Point, images: int, first_seed: int) -> Split:
        labels = torch.arange(images) % self.config.num_classes
        how, parts = point.sampling(self.config), []
        for index in torch.arange(images).split(BATCH):
            x = generate(self.model, self.config, labels[index], first_seed + index, how)
            parts.append(to_uint8(x))
        return Split(torch.cat(parts), labels)

    def is_possible(self, point: Point) -> bool:
        """Whether the model has the point's sampler."""
        try:
            return point.rows(self.config) > 0
        except ValueError:
            return False


def search(evaluator: Evaluator, time_left: Callable[[], bool]) -> None:
    """Measure until no time is left. What was measured is in the file, and the next call continues there."""
    for point in filter(evaluator.is_possible, dict.fromkeys(initial_points(evaluator.config.is_few_step))):
        if not time_left():
            return
        evaluator.measure(point, "search", 0)
    for point, number in next_measurements(evaluator):
        if not time_left():
            return
        evaluator.measure(point, "search", number)


def next_measurements(evaluator: Evaluator) -> Iterator[tuple[Point, int]]:
    """The next point and number of its measurement, until there is none.

    First the points on the front are measured SEARCH_SETS times, then their neighbours once.
    """
    while True:
        lines = evaluator.lines("search")
        fronts = [pareto_front(means(lines), least) for least in (LEAST_ACCURACY, PROMISING_ACCURACY)]
        best = {one.point: one for front in fronts for one in front}
        best = sorted(best.values(), key=lambda one: abs(one.rows - FIRST_ROWS))
        for one in best:
            made = {line["set"] for line in lines if Point.from_line(line) == one.point}
            if missing := set(range(SEARCH_SETS)) - made:
                yield one.point, min(missing)
                break
        else:
            known = {Point.from_line(line) for line in lines}
            around = dict.fromkeys(near for one in best for near in neighbours(one.point))
            fresh = [near for near in around if near not in known and evaluator.is_possible(near)]
            if not fresh:
                return
            yield fresh[0], 0


def report(evaluator: Evaluator, time_left: Callable[[], bool]) -> None:
    """Measure the front of the search, the named settings of the checkpoint, and the old default."""
    chosen = [one.point for one in pareto_front(means(evaluator.lines("search")), LEAST_ACCURACY)]
    named = [Point.from_config(way) for way in evaluator.config.named_sampling.values()]
    for number in range(REPORT_SETS):
        jumps = [replace(named[0], steps=4)] if evaluator.config.is_few_step else []
        for point in dict.fromkeys([*chosen, *named, *jumps, OLD_DEFAULT[evaluator.name]]):
            if time_left():
                evaluator.measure(point, "report", number)


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("search", "report", "plot"))
    parser.add_argument(
        "models", nargs="*", default=["dit", "unet"], help="folders, or names of folders in checkpoints/"
    )
    parser.add_argument("--minutes", type=float, default=60, help="for each model (default: %(default)s)")
    parser.add_argument("--file", type=Path, default=FILE, help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.stage == "plot":
        write_page(read_lines(arguments.file), Path("docs"))
        return
    data = load_data("digits")
    judge, _ = load_judge(Path("runs/judge"), data)
    for name in arguments.models:
        ends = time.monotonic() + 60 * arguments.minutes
        work = search if arguments.stage == "search" else report
        folder = Path(name) if "/" in name else Path("checkpoints") / name
        work(Evaluator(folder, judge, data, arguments.file), lambda ends=ends: time.monotonic() < ends)


if __name__ == "__main__":
    main()
