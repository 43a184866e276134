"""The page and the picture of what was measured."""

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.evaluations.points import LEAST_ACCURACY, Measured, Point, gather
from models.checkpoint import load_config

Lines = list[dict[str, Any]]
NAMES = {"dit": "DiT", "unet": "UNet"}
COLOURS = {"dit": "#0969da", "unet": "#bc4c00"}
HEAD = """\
| rows | steps | sampler | spacing | guidance (from .. to) | accuracy | Frechet ratio | copies |
|---|---|---|---|---|---|---|---|
"""


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of the 95 % interval: Student's t over measurements, each with seeds and draws of its own."""
    from scipy import stats

    if len(values) < 2:
        return values[0], float("nan")
    error = statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(stats.t.ppf(0.975, len(values) - 1)) * error


def table(lines: Lines) -> str:
    """lines: of one model's report."""
    rows = []
    for one in sorted(whole(lines), key=lambda one: (one.rows, one.ratio)):
        parts = [line for line in lines if Point.of(line) == one.point]
        accuracy, ratio = (interval([part[name] for part in parts]) for name in ("accuracy", "ratio"))
        copies = sum(part["copies"] * part["images"] for part in parts)
        rows.append(
            f"| {one.rows} | {one.point.steps} | {one.point.sampler} | {one.point.spacing} | {guided(one.point)} "
            f"| {100 * accuracy[0]:.2f} ± {100 * accuracy[1]:.2f} % | {ratio[0]:.2f} ± {ratio[1]:.2f} "
            f"| {copies:.0f} of {one.images} |"
        )
    return HEAD + "\n".join(rows) + "\n"


def trainings(lines: Lines) -> str:
    """Each point of the tuned networks: the mean over trainings, each with an order and noise of its own.

    Empty where no network was tuned twice.
    """
    head = HEAD.replace("| rows", "| network | trainings | rows", 1).replace("|---", "|---|---|---", 1)
    text = ""
    for model, name in NAMES.items():
        reported = of(lines, model, "report", tuned=True)
        shared = [parts for parts in by_point(reported).values() if len(by_training(parts)) > 1]
        for parts in sorted(shared, key=lambda parts: (parts[0]["rows"], Point.of(parts[0]))):
            means = [mean_of(of_one) for of_one in by_training(parts).values()]
            text += f"| {name} | {len(means)} {table(means).removeprefix(HEAD)}"
    return head + text if text else ""


def mean_of(lines: Lines) -> dict[str, Any]:
    """One line for several measurements of a point."""
    means = {key: statistics.mean(line[key] for line in lines) for key in ("accuracy", "ratio", "copies")}
    return lines[0] | means | {"images": sum(line["images"] for line in lines)}


def by_point(lines: Lines) -> dict[Point, Lines]:
    found: dict[Point, Lines] = {}
    for line in lines:
        found.setdefault(Point.of(line), []).append(line)
    return found


def by_training(lines: Lines) -> dict[str, Lines]:
    found: dict[str, Lines] = {}
    for line in lines:
        found.setdefault(line["sha256"], []).append(line)
    return found


def points(lines: Lines) -> str:
    """What the named qualities of the shipped checkpoints give."""
    text = HEAD.replace("| rows", "| network | quality | rows", 1).replace("|---", "|---|---|---", 1)
    for model, name in NAMES.items():
        config = load_config(Path("checkpoints") / model)
        reported = [line for line in lines if (line["sha256"], line["stage"]) == (config.sha256, "report")]
        for quality, way in config.named_sampling.items():
            point = Point.named(way)
            rows = table([line for line in reported if Point.of(line) == point]).removeprefix(HEAD)
            text += f"| {name} | `{quality}` {rows}"
    return text


def guided(point: Point) -> str:
    return "1" if point.guidance == 1 else f"{point.guidance:g} ({point.low:g} .. {point.high:g})"


def plot(lines: Lines, out: Path) -> None:
    """Frechet ratio against rows: all points of the search faint, the report with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.6), layout="constrained")
    for model, colour in COLOURS.items():
        searched, reported = (of(lines, model, stage) for stage in ("search", "report"))
        tried = gather(searched)
        axes.scatter([one.rows for one in tried], [one.ratio for one in tried], s=7, color=colour, alpha=0.25, lw=0)
        config = load_config(Path("checkpoints") / model)
        default = Point.named(config.default_sampling)
        draw_report(axes, reported, None if config.is_few_step else default, NAMES[model], colour)
        tuned = [line for line in of(lines, model, "report", tuned=True) if line["sha256"] == config.sha256]
        draw_report(axes, tuned, default, f"{NAMES[model]}, tuned", colour, "s")
    axes.set(xscale="log", yscale="log", xlabel="rows (evaluations of the network) an image", ylim=(0.9, 30))
    axes.set_ylabel("matched Frechet ratio (1: as real digits)")
    ticks = [1, 2, 3, 5, 8, 12, 20, 40]
    axes.set_xticks(ticks, labels=map(str, ticks))
    axes.set_yticks([1, 1.5, 2, 3, 5, 10, 20], labels=["1", "1.5", "2", "3", "5", "10", "20"])
    axes.minorticks_off()
    axes.grid(alpha=0.2)
    axes.legend(frameon=False)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    pyplot.close(figure)


def draw_report(axes: Any, lines: Lines, default: Point | None, name: str, colour: str, mark: str = "o") -> None:
    """Each reported point with its interval: a star is the default, hollow what a classifier knows too seldom."""
    for one in whole(lines):
        parts = [line for line in lines if Point.of(line) == one.point]
        mean, half = interval([part["ratio"] for part in parts])
        is_default = one.point == default
        fill = colour if one.accuracy >= LEAST_ACCURACY else "white"
        axes.errorbar(
            one.rows, mean, half, fmt="*" if is_default else mark, ms=13 if is_default else 6, capsize=2,
            color=colour, mfc=fill, label=f"{name}, default" if is_default else None,
        )  # fmt: skip


def whole(lines: Lines) -> list[Measured]:
    """Those that were measured more than once; others have no interval, for their report was interrupted."""
    counts = Counter(Point.of(line) for line in lines)
    return [one for one in gather(lines) if counts[one.point] > 1]


def of(lines: Lines, model: str, stage: str, tuned: bool = False) -> Lines:
    """tuned: for few steps."""
    wanted = model, stage, tuned
    return [line for line in lines if (line["model"], line["stage"], line.get("tuned", False)) == wanted]


def write_page(lines: Lines, folder: Path) -> None:
    """Fill the tables of evaluations.md between their marks, and draw evaluations.svg."""
    page = folder / "evaluations.md"
    text = page.read_text()
    tables = {model: table(of(lines, model, "report")) for model in NAMES}
    tables |= {"points": points(lines), "trainings": trainings(lines)}
    for name, filling in tables.items():
        start, end = (f"<!-- {name}{mark} -->\n" for mark in ("", " end"))
        before, rest = text.split(start)
        text = before + start + filling + end + rest.split(end)[1]
    page.write_text(text)
    plot(lines, folder / "evaluations.svg")
