"""Figures of trainings: verdicts at a glance, quality against what it costs, noise levels, rates and guidance."""

from collections.abc import Callable
from typing import Any

import numpy as np

from training.comparison import selection as s
from training.comparison.drawing import (
    COLOURS,
    GRID,
    INK,
    MARKS,
    PAPER,
    SOFT,
    Picture,
    curves,
    figure,
    nothing,
    plain_logarithm,
    plain_values,
    scales,
    source,
    thousands,
)
from training.comparison.effects import by_seconds, d2
from training.comparison.rates import Chosen
from training.comparison.selection import PAIR, TITLES, Line, Lines, Runs
from training.comparison.verdicts import FAILS, HOLDS, UNDECIDED, Finding
from training.comparison.words import missing

Figure = Callable[[Line], float]
Panel = tuple[str, Figure, str]  # title, value and scale
LIMITS = ((min, -1), (max, 1))
SHAPES = {HOLDS: "o", FAILS: "X", UNDECIDED: "o"}
MAIN: tuple[Panel, ...] = (
    ("loss, held out", s.loss, "log"),
    ("Frechet ratio", s.ratio, "log"),
    ("accuracy", s.accuracy, "linear"),
)
MORE: tuple[Panel, ...] = (
    ("KID less floor", s.kid, "linear"),
    ("precision", s.precision, "linear"),
    ("recall", s.recall, "linear"),
)


def glance(findings: list[Finding]) -> Picture | str:
    """All effects in units of their margins."""
    shown = [finding for finding in findings if finding.interval]
    if not shown:
        return missing("the first effect")
    low, high = (pick(2 * sign, *(end for finding in shown for end in ends(finding))) for pick, sign in LIMITS)
    with figure(1, 1, (8.6, 0.6 + 0.34 * len(shown)), left=3.4, top=0.08) as (grid, svg):
        axes = grid[0, 0]
        axes.axvspan(-1, 1, color=GRID, alpha=0.6, lw=0)
        axes.axvline(0, color=SOFT, lw=0.8)
        for row, finding in enumerate(reversed(shown)):
            mark(axes, row, finding)
        axes.set(xlim=(low - 0.5, high + 0.5), ylim=(-0.6, len(shown) - 0.4))
        axes.set_yticks(range(len(shown)), labels=[f.question.sentence for f in reversed(shown)])
        axes.set_xlabel("effect, in units of the smallest that matters")
        drawn = svg()
    caption = (
        "Effects with 95 % intervals over seeds, positive where the sentence is right. In the gray band no "
        "difference matters. Of O(n^2) and O(n) it is the distance of the exponent from the sentence's, so they "
        "are right inside the band. Circle: holds. Cross: does not hold. Square: no difference that matters. "
        "Hollow: undecided; the runs stand with each verdict. Made by `python run.py compare`."
    )
    return Picture(drawn, ". ".join(f"{f.question.sentence}: {f.verdict}" for f in shown), caption, "verdicts.svg")


def ends(finding: Finding) -> list[float]:
    """Of the interval, in margins."""
    known = finding.interval
    assert known
    return [(known.mean if end is None else end) / finding.question.margin for end in (known.low, known.high)]


def mark(axes: Any, row: int, finding: Finding) -> None:
    known = finding.interval
    assert known
    axes.plot(ends(finding), [row, row], color=INK, lw=2)
    fill = PAPER if finding.verdict == UNDECIDED else INK
    shape, x = SHAPES.get(finding.verdict, "s"), known.mean / finding.question.margin
    axes.plot(x, row, shape, color=INK, mfc=fill, ms=7, zorder=3)


def quality(lines: Lines, rows: tuple[Panel, ...], name: str, file: str = "") -> Picture | str:
    """A row of panels a figure, against images, FLOP and seconds."""
    both, costs = s.runs_of(lines, "D1"), axes_of(lines)
    used = [line for runs in both.values() for run in runs.values() for line in run]
    if not used:
        return missing("D1")
    with figure(len(costs), len(rows), (8.6, 2.2 * len(rows)), left=0.75, apart=0.2, top=0.08, sharey="row") as (
        grid,
        svg,
    ):
        for i, (title, value, scale) in enumerate(rows):
            for axes, (what, cost) in zip(grid[i], costs.items(), strict=True):
                panel(axes, both, cost, value)
                axes.set(xlabel=what if i == len(rows) - 1 else "", yscale=scale)
            grid[i, 0].set_ylabel(title)
            if scale == "log":
                plain_values(grid[i, 0].yaxis)
        grid[0, 0].legend()
        drawn = svg()
    guided = scales(used)
    used += s.of(lines, "D8", keep=lambda x: "timing" in x)
    caption = (
        f"{name}: each seed thin, the mean thick. Samples have the {guided}. Real images have a Frechet ratio of 1 "
        f"and, less its floor, a KID of 0; the table of real images has their other figures. {source(used)}"
    )
    return Picture(drawn, f"{name} of DiT and UNet against images seen, training FLOP and seconds.", caption, file)


def axes_of(lines: Lines) -> dict[str, Figure | None]:
    return {
        "images seen": lambda line: line["images_seen"],
        "training TFLOP": tflop,
        "training seconds (images times D8's)": by_seconds(lines),
    }


def panel(axes: Any, both: dict[str, Runs], cost: Figure | None, value: Figure) -> None:
    """Ticks are the points of the first network that has runs."""
    if not cost:
        return nothing(axes)
    for network, found in both.items():
        curves(axes, found, cost, value, network)
    axes.set_xscale("log")
    first = next(run for runs in both.values() for run in runs.values())
    return plain_logarithm(axes.xaxis, [float(f"{cost(line):.2g}") for line in first], thousands)


def scaling(lines: Lines) -> Picture | str:
    """D2: loss and Frechet ratio against the FLOP of training, and a line through each network's best widths."""
    found = {name: d2(lines, name) for name in PAIR}
    used = [x for seeds in found.values() for budgets in seeds.values() for budget in budgets for x in budget]
    if not all(found.values()):
        return missing("D2")
    with figure(2, 1, (8.6, 3.4), apart=0.6) as (grid, svg):
        for axes, (title, value, _) in zip(grid[0], MAIN[:2], strict=True):
            for name, seeds in found.items():
                dots = [(tflop(x), value(x)) for budgets in seeds.values() for budget in budgets for x in budget]
                axes.plot(*zip(*dots, strict=True), MARKS[name], color=COLOURS[name], ms=3.5, alpha=0.4)
                best = [[min(budget, key=value) for budget in budgets] for budgets in seeds.values()]
                xs, ys = (np.mean([[read(x) for x in run] for run in best], axis=0) for read in (tflop, value))
                slope, start = np.polyfit(np.log(xs), np.log(ys), 1)
                axes.plot(xs, np.exp(start + slope * np.log(xs)), color=COLOURS[name], lw=2.2, label=TITLES[name])
            axes.set(xscale="log", yscale="log", xlabel="training TFLOP", title=title)
            plain_logarithm(axes.xaxis, [6, 18, 54], "{:g}".format)
            plain_values(axes.yaxis)
        grid[0, 0].legend()
        drawn = svg()
    caption = (
        "Each dot is a width and a seed. Lines: through the best width of each budget; their slopes are the "
        f"exponents. {source(used)}"
    )
    return Picture(drawn, "Loss and Frechet ratio of four widths against training FLOP.", caption, "scaling.svg")


def tflop(line: Line) -> float:
    return line["train_flop"] / 1e12


def levels(lines: Lines) -> Picture | str:
    """Errors by noise level at the end of D1's runs."""
    both = s.runs_of(lines, "D1")
    used = [run[-1] for runs in both.values() for run in runs.values()]
    if not used:
        return missing("D1")
    with figure(3, 1, (8.6, 2.8)) as (grid, svg):
        for axes, (title, value) in zip(grid[0], LEVELS.items(), strict=True):
            for network, found in both.items():
                by_level(axes, found, value, network)
            axes.set(xlabel="noise time u (0: image, 1: noise)", title=title)
        for axes in grid[0, :2]:
            axes.set_yscale("log")
            plain_values(axes.yaxis)
        grid[0, 2].axhline(1, color=SOFT, lw=0.8)
        grid[0, 0].legend()
        drawn = svg()
    caption = (
        "Left: squared error of the denoised held-out image. Middle: the loss that training minimises. Right: "
        "held-out over trained images, above 1 where a network remembers its training images. Last point of each "
        f"run. {source(used)}"
    )
    return Picture(drawn, "Errors of both networks by noise level, and the gap to trained images.", caption)


LEVELS: dict[str, Callable[[Line], np.ndarray]] = {
    "error of x0": lambda loss: np.array(loss["test"]["x0"]),
    "training loss": lambda loss: np.array(loss["test"]["training"]),
    "held-out / trained": lambda loss: np.array(loss["test"]["x0"]) / np.array(loss["train"]["x0"]),
}


def by_level(axes: Any, found: Runs, value: Callable[[Line], np.ndarray], network: str) -> None:
    rows, u = [value(run[-1]["loss"]) for run in found.values()], []
    for run, row in zip(found.values(), rows, strict=True):
        u = run[-1]["loss"]["u"]
        axes.plot(u, row, color=COLOURS[network], lw=0.8, alpha=0.4)
    if rows:
        mean = np.mean(rows, axis=0)
        axes.plot(u, mean, color=COLOURS[network], lw=2.2, marker=MARKS[network], ms=4, label=TITLES[network])


def rates(lines: Lines) -> Picture | str:
    """Loss of every learning rate on seed 0."""
    used = s.of(lines, "D1-rates", keep=lambda x: "loss" in x)
    if not used:
        return missing("D1-rates")
    with figure(2, 1, (8.6, 3.0), apart=0.25, sharey=True) as (grid, svg):
        for axes, network in zip(grid[0], PAIR, strict=True):
            mine = [line for line in used if line["network"] == network]
            for dash, rate in zip(("--", "-", ":", "-."), sorted({x["recipe"]["lr"] for x in mine}), strict=False):
                run = sorted((x for x in mine if x["recipe"]["lr"] == rate), key=lambda x: x["images_seen"])
                points = [(x["images_seen"], s.loss(x)) for x in run]
                axes.plot(*zip(*points, strict=True), dash, color=COLOURS[network], marker=".", label=f"{rate:g}")
            axes.set(xscale="log", yscale="log", xlabel="images seen", title=f"{TITLES[network]}, by learning rate")
            plain_logarithm(axes.xaxis, sorted({x["images_seen"] for x in used}), thousands)
            axes.legend()
        grid[0, 0].set_ylabel("loss, held out")
        plain_values(grid[0, 0].yaxis)
        drawn = svg()
    caption = f"Held-out loss by learning rate. {source(used)}"
    return Picture(drawn, "Held-out loss against images seen for the learning rates of each network.", caption)


def guidance(chosen: dict[str, Chosen]) -> Picture | str:
    """Figures against the guidance scale at the chosen rate."""
    used, panels = [line for choice in chosen.values() for line in choice.scales], (*MAIN[1:], *MORE[1:])
    if not used:
        return missing("D1-rates")
    with figure(4, 1, (8.6, 2.6), apart=0.45) as (grid, svg):
        for axes, (title, value, scale) in zip(grid[0], panels, strict=True):
            for network, choice in chosen.items():
                run = sorted(choice.scales, key=lambda x: x["guidance"])
                xs, ys = [x["guidance"] for x in run], [value(x) for x in run]
                axes.plot(xs, ys, color=COLOURS[network], marker=MARKS[network], ms=5, label=TITLES[network])
            axes.set(xlabel="guidance scale", title=title, yscale=scale)
        plain_values(grid[0, 0].yaxis)
        grid[0, 0].legend()
        drawn = svg()
    caption = f"By guidance scale, at the chosen rate, after the last image. {source(used)}"
    return Picture(drawn, "Frechet ratio, accuracy, precision and recall against the guidance scale.", caption)


def evaluations(lines: Lines) -> Picture | str:
    """Figures against the evaluations of a sample, at the end of D1's runs."""
    used, panels = s.of(lines, "D1-evaluations", keep=lambda x: "by_evaluations" in x), (*MAIN[1:], *MORE[1:])
    if not used:
        return missing("D1-evaluations")
    counts = sorted({int(count) for line in used for count in line["by_evaluations"]})
    with figure(4, 1, (8.6, 2.6), apart=0.45) as (grid, svg):
        for axes, (title, value, scale) in zip(grid[0], panels, strict=True):
            for network in PAIR:
                mine = {s.seed_of(line): by_evaluations(line) for line in used if line["network"] == network}
                curves(axes, mine, lambda x: x["evaluations"], value, network)
            axes.set(xscale="log", xlabel="evaluations", title=title, yscale=scale)
            plain_logarithm(axes.xaxis, counts, "{:g}".format)
        plain_values(grid[0, 0].yaxis)
        grid[0, 0].legend()
        drawn = svg()
    caption = (
        f"By evaluations of the network for a sample, after the last image, with the {scales(used)}, as in the "
        f"verdicts. A guided evaluation takes two rows. {source(used)}"
    )
    return Picture(drawn, "Frechet ratio, accuracy, precision and recall against evaluations.", caption)


def by_evaluations(line: Line) -> Lines:
    """As the points of a run, with `evaluations`."""
    found = sorted((int(count), figures) for count, figures in line["by_evaluations"].items())
    return [{"evaluations": count} | figures for count, figures in found]
