"""Points of the search, which are settings to sample with, and the selection of those with the best quality for
their rows.

A row is one evaluation of the network; a guided step costs two.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeVar

from models.checkpoint import ModelConfig
from models.samplers import SAMPLERS, SPACINGS, T
from models.sampling import Guidance
from training.report import Sampling

K = TypeVar("K")
LEAST_ACCURACY = 0.985  # of a point that may become a default
STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20)
SCALES = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
EDGES = tuple(tenth / 10 for tenth in range(11))  # of guidance intervals
JUMP_SPACINGS = ("trailing", "shifted")  # of the sampler "consistency"; the others start from less than pure noise
INTERVALS = ((0.0, 1.0), (0.0, 0.5), (0.1, 0.6), (0.2, 0.7), (0.3, 0.8), (0.3, 1.0), (0.5, 1.0))


@dataclass(frozen=True, order=True)
class Point:
    """Settings to sample with, by their names in the API; low and high are the guidance interval."""

    steps: int
    sampler: str = "dpmpp_2m"
    spacing: str = "trailing"
    guidance: float = 1.5
    low: float = 0.3
    high: float = 0.8

    def sampling(self, config: ModelConfig) -> Sampling:
        guidance = Guidance(self.guidance, self.low, self.high, config.guidance_range)
        return Sampling(self.sampler, self.steps, guidance, self.spacing)

    def rows(self, config: ModelConfig) -> int:
        """Evaluations an image; raises ValueError where the model has no such sampler."""
        table, guidance = config.table(self.sampler, self.steps, self.spacing), self.sampling(config).guidance
        steps = zip(table.rows[:, T].tolist(), table.jumps.tolist(), strict=True)
        return sum(1 + (guidance.split(t, r)[0] != 1) for t, r in steps)

    @classmethod
    def from_config(cls, named: dict[str, Any]) -> "Point":
        """named: an entry of ModelConfig.named_sampling."""
        low, high = named["guidance_interval"]
        return cls(named["steps"], named["sampler"], named["spacing"], named["guidance"], low, high)

    @classmethod
    def from_line(cls, line: dict[str, Any]) -> "Point":
        """line: of docs/evaluations.jsonl."""
        return cls(**line["point"])


def initial_points(few_step: bool) -> Iterator[Point]:
    """The first part of the search: every sampler, spacing, number of steps, scale and kind of interval.

    It is a coarse grid, because the neighbours of the best points are measured after it. few_step: the network was
    tuned for few steps, so the sampler "consistency" comes first.
    """
    if few_step:
        for steps, spacing, scale in product((2, 1, 4, 3), JUMP_SPACINGS, SCALES):
            yield Point(steps, "consistency", spacing, scale)
    for scale, interval in product((1.25, 1.5, 2.0, 3.0), INTERVALS):
        yield Point(5, "dpmpp_2m", "trailing", scale, *interval)
    for steps, spacing, sampler in product((3, 5, 8), SPACINGS, ("dpmpp_2m", "ab2")):
        yield Point(steps, sampler, spacing)
    for steps, sampler in product(STEPS, SAMPLERS):
        yield Point(steps, sampler)
    for steps in STEPS:
        yield Point(steps, guidance=1.0)


def neighbours(point: Point) -> Iterator[Point]:
    """The points that differ in one setting: another sampler or spacing, or the next value of a number."""
    for steps in (point.steps - 1, point.steps + 1):
        if 1 <= steps <= STEPS[-1]:
            yield replace(point, steps=steps)
    yield from (replace(point, sampler=name) for name in SAMPLERS if name != point.sampler)
    yield from (replace(point, spacing=name) for name in SPACINGS if name != point.spacing)
    yield from (replace(point, guidance=value) for value in adjacent(point.guidance, SCALES))
    if point.guidance == 1:
        return  # without an interval
    yield from (replace(point, low=value) for value in adjacent(point.low, EDGES) if value <= point.high)
    yield from (replace(point, high=value) for value in adjacent(point.high, EDGES) if value >= point.low)


def adjacent(value: float, values: tuple[float, ...]) -> list[float]:
    """The values before and after one of them."""
    at = values.index(value)
    return [values[place] for place in (at - 1, at + 1) if 0 <= place < len(values)]


@dataclass(frozen=True)
class PointMean:
    """The mean of all measurements of a point."""

    point: Point
    rows: int
    images: int
    accuracy: float
    ratio: float  # matched Frechet distance over that of real digits


def group(lines: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], K]) -> dict[K, list[dict[str, Any]]]:
    """The lines by their key."""
    groups: dict[K, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return groups


def means(lines: Iterable[dict[str, Any]]) -> list[PointMean]:
    """lines: of one model and stage."""
    return [
        PointMean(
            point,
            parts[0]["rows"],
            sum(part["images"] for part in parts),
            sum(part["accuracy"] for part in parts) / len(parts),
            sum(part["ratio"] for part in parts) / len(parts),
        )
        for point, parts in group(lines, Point.from_line).items()
    ]


def pareto_front(measured: Iterable[PointMean], least_accuracy: float = 0.0) -> list[PointMean]:
    """The points of that accuracy or more for which no point of as few rows has a lower ratio, by rows."""
    kept: list[PointMean] = []
    accurate = (mean for mean in measured if mean.accuracy >= least_accuracy)
    for mean in sorted(accurate, key=lambda mean: (mean.rows, mean.ratio)):
        if not kept or mean.ratio < kept[-1].ratio:
            kept.append(mean)
    return kept
