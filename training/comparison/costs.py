"""Figures of costs: step times by rows and pixels (D8), and quality against serving cost (D9)."""

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from training.comparison import selection as s
from training.comparison.drawing import (
    COLOURS,
    MARKS,
    PAPER,
    Picture,
    figure,
    plain_logarithm,
    plain_values,
    source,
)
from training.comparison.rates import Table
from training.comparison.selection import DIT, PAIR, TITLES, Line, Lines
from training.comparison.verdicts import Interval, interval
from training.comparison.words import missing, number, percent, span

BACKEND, ROWS = "OpenVINO bfloat16", "8"  # keys of docs/cpu.json: the service's choice on a CPU with bfloat16
SHOWN = 0.975  # accuracy that settings need to be listed
Row = dict[int, float]  # a value by size


def steps(lines: Lines) -> Picture | str:
    """Step time against pixels and rows, and the attention's share of a step."""
    timed = {name: list(s.timings(lines, name).values()) for name in PAIR}
    if not any(timed.values()):
        return missing("D8")
    with figure(3, 1, (8.6, 3.0)) as (grid, svg):
        pixels, rows, share = grid[0]
        for name, found in timed.items():
            draw(pixels, [milliseconds(by_pixels(timing["step_seconds"])) for timing in found], name)
            draw(rows, [milliseconds(timing["step_seconds"].get("32", {})) for timing in found], name)
        draw(share, attention_percent(lines), DIT)
        pixels.set(xlabel="pixels a side, one row", title="milliseconds of a step", yscale="log")
        rows.set(xlabel="rows, 32 pixels a side", title="milliseconds of a step", yscale="log")
        share.set(xlabel="pixels a side, one row", title="attention's share of it, %")
        share.set_ylim(0)
        for axes in (pixels, rows):
            plain_values(axes.yaxis)
        pixels.legend()
        drawn = svg()
    used = s.of(lines, "D8", keep=lambda x: "timing" in x)
    caption = (
        "Left: a forward of one row. Middle: a forward of 32 pixels a side, by rows. Right: the attention timed "
        "alone, times the blocks of the DiT, over its step. Each process thin, their mean thick. "
        f"{quiet(used)} {source(used)}"
    )
    return Picture(drawn, "Step times of both networks, and the attention's share.", caption, "steps.svg")


def quiet(lines: Lines) -> str:
    """A sentence on the load by other processes during the timing, which some systems do not report."""
    loads = [line["timing"].get("load") for line in lines]
    if None in loads:
        return "What other programs used of the machine meanwhile is not known."
    return f"Other programs used up to {percent(max(loads))} of the cores meanwhile."


def by_pixels(seconds: dict[str, dict[str, float]]) -> dict[str, float]:
    """Seconds of a forward with one row, by pixels a side."""
    return {side: by_rows["1"] for side, by_rows in seconds.items() if "1" in by_rows}


def milliseconds(seconds: dict[str, float]) -> Row:
    return {int(size): 1000 * value for size, value in seconds.items()}


def attention_percent(lines: Lines) -> list[Row]:
    """The attention's share of the DiT's step in %, by pixels a side; one dict for each process."""
    shares = s.attention_share(lines)
    return [
        {side: 100 * share for side, share in zip(shares, values, strict=True)}
        for values in zip(*shares.values(), strict=False)
    ]


def draw(axes: Any, rows: list[Row], name: str) -> None:
    """Plot each process thin and their mean thick, on a logarithmic x axis with a tick at every size."""
    sizes = sorted({x for row in rows for x in row})
    if not sizes:
        return
    for row in rows:
        axes.plot(sorted(row), [row[x] for x in sorted(row)], color=COLOURS[name], lw=0.8, alpha=0.4)
    mean = [statistics.fmean(row[x] for row in rows if x in row) for x in sizes]
    axes.plot(sizes, mean, color=COLOURS[name], lw=2.2, marker=MARKS[name], ms=4, label=TITLES[name])
    axes.set_xscale("log")
    plain_logarithm(axes.xaxis, sizes, "{:g}".format)


def read_serving(docs: Path) -> tuple[Lines, Line]:
    """Reports of evaluations.jsonl on networks tuned for few steps, and cpu.json; empty for missing files."""
    path, cpu = docs / "evaluations.jsonl", docs / "cpu.json"
    text = path.read_text("utf-8") if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    tuned = [line for line in lines if line["stage"] == "report" and line.get("tuned")]
    return tuned, json.loads(cpu.read_text("utf-8")) if cpu.exists() else {}


class Settings(NamedTuple):
    """Settings of a sampler, with what they give and cost."""

    model: str
    described: str
    rows: float  # an image
    accuracy: Interval
    ratio: Interval  # of Frechet distances
    milliseconds: float  # of the processor, an image


def reported(tuned: Lines, cpu: Line) -> list[Settings]:
    """All reported settings: intervals over trainings; milliseconds from the rows an image and the speed."""
    found = []
    for model in PAIR:
        speed = cpu.get("rows", {}).get(model, {}).get(BACKEND, {}).get(ROWS)
        mine = [line for line in tuned if line["model"] == model]
        for how in sorted({json.dumps(line["point"], sort_keys=True) for line in mine}) if speed else ():
            lines = [line for line in mine if json.dumps(line["point"], sort_keys=True) == how]
            rows = lines[0]["rows"]
            accuracy, ratio = (over_trainings(lines, figure) for figure in ("accuracy", "ratio"))
            found.append(Settings(model, named(json.loads(how)), rows, accuracy, ratio, 1000 * rows / speed))
    return sorted(found, key=lambda x: (x.model, x.milliseconds, x.ratio.mean))


def over_trainings(lines: Lines, name: str) -> Interval:
    trainings = sorted({line["trained"] for line in lines})
    return interval([statistics.fmean(x[name] for x in lines if x["trained"] == k) for k in trainings])


def named(point: Line) -> str:
    guidance = f"guidance {point['guidance']:g}"
    return f"{point['sampler']}, {point['steps']} step{'s' * (point['steps'] != 1)}, {point['spacing']}, {guidance}"


def serving_table(found: list[Settings]) -> Table:
    """The table of the Pareto-optimal settings of each network with an accuracy of at least SHOWN."""
    head = ["network", "settings", "rows an image", "accuracy", "Frechet ratio", "ms an image"]
    rows = [
        [TITLES[x.model], x.described, f"{x.rows:g}", *figures(x)]
        for x in found
        if x.accuracy.mean >= SHOWN and not any(beats(other, x) for other in found)
    ]
    return head, rows


def figures(x: Settings) -> list[str]:
    return [span(x.accuracy, percent), span(x.ratio), number(x.milliseconds)]


def beats(a: Settings, b: Settings) -> bool:
    """Whether a are other settings of the same network that are no worse in cost and in both figures."""
    better = a.accuracy.mean >= b.accuracy.mean and a.ratio.mean <= b.ratio.mean
    return a.model == b.model and better and a.milliseconds <= b.milliseconds and a != b


def serving(found: list[Settings], tuned: Lines, cpu: Line) -> Picture | str:
    """Frechet ratio against milliseconds an image."""
    if not found:
        return missing("docs/evaluations.jsonl and docs/cpu.json")
    with figure(1, 1, (7.2, 3.6), top=0.08) as (grid, svg):
        axes = grid[0, 0]
        for model, _, _, accuracy, ratio, ms in found:
            ends = [ratio.mean if end is None else end for end in (ratio.low, ratio.high)]
            fill = COLOURS[model] if accuracy.mean >= SHOWN else PAPER
            axes.plot([ms, ms], ends, color=COLOURS[model], lw=1.2)
            axes.plot(ms, ratio.mean, MARKS[model], color=COLOURS[model], mfc=fill, ms=6)
        for name in PAIR:
            axes.plot([], [], MARKS[name], color=COLOURS[name], label=TITLES[name])
        axes.set(
            xscale="log", yscale="log", xlabel="milliseconds of the processor an image", ylabel="Frechet ratio"
        )
        plain_values(axes.xaxis)
        plain_values(axes.yaxis)
        axes.legend()
        drawn = svg()
    commits, where = ", ".join(sorted({line["commit"][:7] for line in tuned})), cpu["measured"]
    caption = (
        "All reported settings of the shipped networks, which are larger than the two above and tuned for "
        f"few steps. Intervals are over three trainings. Hollow: accuracy under {percent(SHOWN)}. Quality: "
        f"docs/evaluations.jsonl, commits {commits}. Cost: docs/cpu.json, {BACKEND}, {ROWS} rows, "
        f"{where['processor']}, commit {where['commit'][:7]}. Made by `python run.py compare`."
    )
    alt = "Frechet ratio against milliseconds an image for both shipped networks."
    return Picture(drawn, alt, caption, "serving.svg")
