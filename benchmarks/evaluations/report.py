"""Makes the tables and the picture of docs/evaluations.md from docs/evaluations.jsonl."""

import statistics
from collections import Counter
from operator import itemgetter
from pathlib import Path
from typing import Any

from benchmarks.evaluations.points import LEAST_ACCURACY, Point, PointMean, group, means
from models.checkpoint import load_config

Lines = list[dict[str, Any]]
NAMES = {"dit": "DiT", "unet": "UNet"}
COLOURS = {"dit": "#0969da", "unet": "#bc4c00"}
HEAD = """\
| rows | steps | sampler | spacing | guidance (from .. to) | accuracy | Frechet ratio | copies |
|---|---|---|---|---|---|---|---|
"""


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval, by Student's t; each value has seeds and draws of its own."""
    from scipy import stats

    if len(values) < 2:
        return values[0], float("nan")
    error = statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(stats.t.ppf(0.975, len(values) - 1)) * error


def table(lines: Lines) -> str:
    """A line for each point that was measured more than once; lines: of one model's report."""
    rows = []
    for one in sorted(repeated(lines), key=lambda one: (one.rows, one.ratio)):
        point = one.point
        parts = [line for line in lines if Point.from_line(line) == point]
        accuracy, ratio = (interval([part[name] for part in parts]) for name in ("accuracy", "ratio"))
        copies = sum(part["copies"] * part["images"] for part in parts)
        rows.append(
            f"| {one.rows} | {point.steps} | {point.sampler} | {point.spacing} | {guidance_cell(point)} "
            f"| {100 * accuracy[0]:.2f} ± {100 * accuracy[1]:.2f} % | {ratio[0]:.2f} ± {ratio[1]:.2f} "
            f"| {copies:.0f} of {one.images} |"
        )
    return HEAD + "\n".join(rows) + "\n"


def trainings(lines: Lines) -> str:
    """The table of points of tuned networks: means over trainings, which differ in the order of data and in noise.

    It has the points that were measured for several trainings, and is empty where there is none.
    """
    head = HEAD.replace("| rows", "| network | trainings | rows", 1).replace("|---", "|---|---|---", 1)
    text = ""
    for model, name in NAMES.items():
        reported = select(lines, model, "report", tuned=True)
        for parts in sorted(group(reported, Point.from_line).values(), key=_rows_and_point):
            trained = [mean_of(of_one) for of_one in group(parts, itemgetter("sha256")).values()]
            if len(trained) > 1:
                text += f"| {name} | {len(trained)} {table(trained).removeprefix(HEAD)}"
    return head + text if text else ""


def mean_of(lines: Lines) -> dict[str, Any]:
    """One line for several measurements of a point."""
    means = {key: statistics.mean(line[key] for line in lines) for key in ("accuracy", "ratio", "copies")}
    return lines[0] | means | {"images": sum(line["images"] for line in lines)}


def _rows_and_point(parts: Lines) -> tuple[int, Point]:
    return parts[0]["rows"], Point.from_line(parts[0])


def qualities(lines: Lines) -> str:
    """The table of the named qualities of the shipped checkpoints."""
    text = HEAD.replace("| rows", "| network | quality | rows", 1).replace("|---", "|---|---|---", 1)
    for model, name in NAMES.items():
        config = load_config(Path("checkpoints") / model)
        reported = [line for line in lines if (line["sha256"], line["stage"]) == (config.sha256, "report")]
        for quality, named in config.named_sampling.items():
            point = Point.from_config(named)
            rows = table([line for line in reported if Point.from_line(line) == point]).removeprefix(HEAD)
            text += f"| {name} | `{quality}` {rows}"
    return text


def guidance_cell(point: Point) -> str:
    return "1" if point.guidance == 1 else f"{point.guidance:g} ({point.low:g} .. {point.high:g})"


def plot(lines: Lines, out: Path) -> None:
    """Frechet ratio against rows: the points of the search are pale, those of the report have intervals."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for model, colour in COLOURS.items():
        searched, reported = (select(lines, model, stage) for stage in ("search", "report"))
        tried = means(searched)
        axes.scatter([one.rows for one in tried], [one.ratio for one in tried], s=7, color=colour, alpha=0.25, lw=0)
        config = load_config(Path("checkpoints") / model)
        default = Point.from_config(config.default_sampling)
        draw_report(axes, reported, None if config.is_few_step else default, NAMES[model], colour)
        tuned = [line for line in select(lines, model, "report", tuned=True) if line["sha256"] == config.sha256]
        draw_report(axes, tuned, default, f"{NAMES[model]}, tuned", colour, "s")
    axes.set(xscale="log", yscale="log", xlabel="rows (evaluations of the network) an image", ylim=(0.9, 30))
    axes.set_ylabel("matched Frechet ratio (1: as real digits)")
    ticks = [1, 2, 3, 5, 8, 12, 20, 40]
    axes.set_xticks(ticks, labels=map(str, ticks))
    axes.set_yticks([1, 1.5, 2, 3, 5, 10, 20], labels=["1", "1.5", "2", "3", "5", "10", "20"])
    axes.minorticks_off()
    axes.grid(alpha=0.2)
    axes.legend(frameon=False)
    with matplotlib.rc_context({"svg.hashsalt": "evaluations"}):  # else every drawing has other names inside
        figure.savefig(out, metadata={"Date": None})


def draw_report(axes: Any, lines: Lines, default: Point | None, name: str, colour: str, mark: str = "o") -> None:
    """Draw each reported point with its interval: the default as a star, and hollow below LEAST_ACCURACY."""
    for one in repeated(lines):
        parts = [line for line in lines if Point.from_line(line) == one.point]
        mean, half = interval([part["ratio"] for part in parts])
        is_default = one.point == default
        fill = colour if one.accuracy >= LEAST_ACCURACY else "white"
        axes.errorbar(
            one.rows, mean, half, fmt="*" if is_default else mark, ms=13 if is_default else 6, capsize=2,
            color=colour, mfc=fill, label=f"{name}, default" if is_default else None,
        )  # fmt: skip


def repeated(lines: Lines) -> list[PointMean]:
    """Points that were measured more than once. Others have no interval, because their report was interrupted."""
    counts = Counter(map(Point.from_line, lines))
    return [one for one in means(lines) if counts[one.point] > 1]


def select(lines: Lines, model: str, stage: str, tuned: bool = False) -> Lines:
    """The lines of a model and stage; tuned: of networks that were tuned for few steps, instead of the others."""
    wanted = model, stage, tuned
    return [line for line in lines if (line["model"], line["stage"], line.get("tuned", False)) == wanted]


def write_page(lines: Lines, folder: Path) -> None:
    """Fill the tables of evaluations.md between their marks, and draw evaluations.svg."""
    page = folder / "evaluations.md"
    text = page.read_text()
    tables = {model: table(select(lines, model, "report")) for model in NAMES}
    tables |= {"points": qualities(lines), "trainings": trainings(lines)}
    for name, filling in tables.items():
        start, end = (f"<!-- {name}{mark} -->\n" for mark in ("", " end"))
        before, rest = text.split(start)
        text = before + start + filling + end + rest.split(end)[1]
    page.write_text(text)
    plot(lines, folder / "evaluations.svg")
