"""Which ways to sample are measured, and which are kept."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.evaluations import __main__ as evaluations
from benchmarks.evaluations.points import (
    Point,
    PointMean,
    adjacent,
    initial_points,
    means,
    neighbours,
    pareto_front,
)
from benchmarks.evaluations.report import interval, plot, select, table, trainings
from models.checkpoint import ModelConfig, load_config
from models.samplers import SAMPLERS, SPACINGS
from training.data import Data, Split

FLOW = ModelConfig("dit", {})


def line(point: Point, ratio: float, **facts: object) -> dict[str, object]:
    plain = {"model": "dit", "stage": "search", "set": 0, "images": 500, "accuracy": 0.99, "copies": 0.0}
    facts = {"rows": point.steps if point.sampler == "consistency" else point.rows(FLOW)} | facts
    return plain | {"point": asdict(point), "ratio": ratio} | facts


def test_a_guided_step_in_the_interval_costs_two_rows() -> None:
    assert Point(10, low=0.0, high=1.0).rows(FLOW) == 20
    assert Point(10, low=0.3, high=0.8).rows(FLOW) == 16  # u = 0.8 .. 0.3
    assert Point(10, guidance=1.0).rows(FLOW) == 10
    with pytest.raises(ValueError, match="euler"):
        Point(10, "euler").rows(ModelConfig("dit", {}, schedule="cosine", prediction="v"))


def test_the_sheets_hold_every_sampler_spacing_and_kind_of_guidance() -> None:
    points = set(initial_points(few_step=False))
    assert {point.sampler for point in points} == set(SAMPLERS)
    assert {point.spacing for point in points} == set(SPACINGS)
    assert {1, 2, 3, 5, 10, 20} <= {point.steps for point in points}
    assert {1.0, 1.5, 3.0} <= {point.guidance for point in points}
    assert {(0.0, 1.0), (0.3, 0.8)} <= {(point.low, point.high) for point in points}


def test_neighbours_differ_in_one_coordinate() -> None:
    point = Point(1, low=0.8)
    near = list(neighbours(point))
    assert len(set(near)) == len(near)
    for other in near:
        assert sum(asdict(point)[name] != value for name, value in asdict(other).items()) == 1
        assert other.steps >= 1
        assert other.low <= other.high
    assert adjacent(3.0, (1.0, 2.0, 3.0)) == [2.0]


def test_the_front_needs_accuracy_and_beats_all_of_fewer_rows() -> None:
    def measured(rows: int, ratio: float, accuracy: float = 0.99) -> PointMean:
        return PointMean(Point(rows), rows, 500, accuracy, ratio)

    good, worse, costly, wrong = measured(4, 2.0), measured(5, 2.5), measured(8, 1.5), measured(2, 1.1, 0.9)
    assert pareto_front([costly, worse, wrong, good], 0.985) == [good, costly]
    assert pareto_front([costly, worse, wrong, good]) == [wrong]


def test_measurements_of_a_point_are_one() -> None:
    [one] = means([line(Point(4), 1.0), line(Point(4), 2.0, set=1)])
    assert (one.ratio, one.images) == (1.5, 1000)
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, round(half, 3)) == (2.0, 2.484)  # t of two degrees of freedom is 4.303
    text = table([line(Point(4), 1.0, stage="report"), line(Point(4), 2.0, set=1, stage="report")])
    assert "| 6 | 4 | dpmpp_2m | trailing | 1.5 (0.3 .. 0.8) | 99.00 ± 0.00 % | 1.50 ± 6.35 | 0 of 1000 |" in text


def test_trainings_count_once_each_whatever_their_measurements() -> None:
    jump = Point(2, "consistency", guidance=2.0)
    lines = [
        line(jump, ratio, stage="report", sha256=training, set=number, tuned=True)
        for training, ratios in (("a", (1.0, 1.2)), ("b", (1.3,)), ("c", (1.5, 1.7)))
        for number, ratio in enumerate(ratios)
    ]
    lines.append(line(Point(4), 9.0, stage="report", sha256="a", tuned=True))  # one training
    text = trainings(lines)
    assert (
        "| DiT | 3 | 2 | 2 | consistency | trailing | 2 (0.3 .. 0.8) | 99.00 ± 0.00 % | 1.33 ± 0.63 | 0 of 2500 |"
        in text
    )
    assert "dpmpp_2m" not in text
    assert trainings([one for one in lines if one["sha256"] == "a"]) == ""
    assert "1.33" not in table(select([*lines], "dit", "report"))


def test_the_picture_is_the_same_at_each_drawing(tmp_path: Path) -> None:
    config = load_config(Path("checkpoints") / "dit")
    facts = {"sha256": config.sha256, "tuned": config.is_few_step}
    lines = [
        line(Point.from_config(config.default_sampling), 1.5, rows=4, stage="report", set=n, **facts)
        for n in (0, 1)
    ]
    lines.append(line(Point(4), 2.0))
    for name in ("a.svg", "b.svg"):
        plot(lines, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_jumps_come_first_in_the_search_of_a_tuned_network() -> None:
    first = next(iter(initial_points(few_step=True)))
    assert (first.sampler, first.steps) == ("consistency", 2)
    assert set(initial_points(few_step=False)) < set(initial_points(few_step=True))


class Noise(nn.Module):
    """A network that says that all is grey."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Grader:
    def grade(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.float().flatten(1)[:, :3] + torch.randn(len(images), 3), torch.arange(len(images)) % 10


@pytest.fixture
def evaluator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> evaluations.Evaluator:
    monkeypatch.setattr(evaluations, "IMAGES", {"search": 20, "report": 20})
    monkeypatch.setattr(evaluations, "load_checkpoint", lambda folder: (Noise(), FLOW))
    images = torch.randint(0, 255, (80, 3, 32, 32), dtype=torch.uint8)
    split = Split(images, torch.arange(80) % 10)
    data = Data(split, split, split, [str(digit) for digit in range(10)])
    return evaluations.Evaluator(tmp_path, Grader(), data, tmp_path / "lines.jsonl")  # pyright: ignore


def test_a_measurement_is_made_once_and_the_search_goes_on(evaluator: evaluations.Evaluator) -> None:
    left = iter([True] * 3 + [False] * 9)
    evaluations.search(evaluator, lambda: next(left))
    lines = [json.loads(text) for text in evaluator.file.read_text().splitlines()]
    assert [Point.from_line(one) for one in lines] == list(initial_points(few_step=False))[:3]
    left = iter([True] * 4 + [False] * 9)
    evaluations.search(evaluator, lambda: next(left))
    assert len(evaluator.lines("search")) == 4
    assert evaluator.lines("report") == []


def test_more_images_go_to_the_front_then_its_neighbours_are_tried(evaluator: evaluations.Evaluator) -> None:
    point = Point(4)
    facts = {"sha256": FLOW.sha256, "images": 20}
    evaluator.file.write_text(json.dumps(line(point, 1.0, **facts)) + "\n")
    assert next(evaluations.next_measurements(evaluator)) == (point, 1)
    with evaluator.file.open("a") as file:
        for number in range(1, evaluations.SEARCH_SETS):
            file.write(json.dumps(line(point, 1.0, set=number, **facts)) + "\n")
    assert next(evaluations.next_measurements(evaluator)) == (next(neighbours(point)), 0)
