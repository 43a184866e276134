"""Style of the comparison's figures, and their deterministic output as SVG.

The two colours are safe for colour-blind readers. In a page they follow its light or dark theme.
"""

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.comparison.selection import DIT, MISSING, TITLES, UNET, Line, Lines, Runs

COLOURS = {DIT: "#0072b2", UNET: "#d55e00"}  # of Okabe and Ito
INK, GRID, PAPER, SOFT = "#1b1f24", "#d8dde3", "#ffffff", "#7a828c"
THEME = {INK: "currentColor", GRID: "var(--grid)", PAPER: "var(--paper)", SOFT: "var(--soft)"}
THEME |= {COLOURS[DIT]: "var(--dit)", COLOURS[UNET]: "var(--unet)"}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "comparison", "svg.fonttype": "none", "path.simplify": False, "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.minor.size": 0, "ytick.minor.size": 0,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.edgecolor": SOFT,
    "axes.labelcolor": INK, "axes.titlecolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER, "legend.facecolor": PAPER,
    "legend.edgecolor": "none", "legend.framealpha": 0.75,
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A drawing with its words. file: its name where the Markdown page shows it, too."""

    svg: str
    alt: str
    caption: str
    file: str = ""

    def inline(self) -> str:
        """The SVG for embedding in a page, with the page's colours and fonts."""
        text = re.sub(r"^.*?(?=<svg)", "", self.svg, flags=re.DOTALL)
        text = re.sub(r" <metadata>.*?</metadata>\n", "", text, flags=re.DOTALL)
        used = set(re.findall(r"#([\w-]+)[\")]", text))
        text = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", text)  # others repeat in a page
        for colour, ours in THEME.items():
            text = text.replace(colour, ours)
        text = re.sub(r"font: (\S+) [^;\"]+", r"font-size: \1", text)
        text = re.sub(r" font-family: [^;\"]+;?", "", text)
        size = re.search(r'viewBox="0 0 (\S+) \S+"', text)
        wide = f'style="min-width:{min(float(size[1]) * 0.95, 640):.0f}px"' if size else ""
        return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf"<svg {wide} \1>", text, count=1).strip()


@contextmanager
def figure(
    columns: int,
    rows: int,
    size: tuple[float, float],
    *,
    left: float = 0.6,
    apart: float = 0.5,
    top: float = 0.29,
    between: float = 0.35,
    **options: Any,
) -> Iterator[tuple[Any, Callable[[], str]]]:
    """Axes [rows, columns], and a function that turns them into SVG. left .. between: inches around them.

    Margins are fixed, because computing a layout takes as long as drawing.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        drawn, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, **options)
        width = (size[0] - left - 0.12 - apart * (columns - 1)) / columns
        height = (size[1] - 0.46 - top - between * (rows - 1)) / rows
        drawn.subplots_adjust(
            left / size[0], 0.46 / size[1], 1 - 0.12 / size[0], 1 - top / size[1], apart / width, between / height
        )
        try:
            yield axes, lambda: svg_of(drawn)
        finally:
            pyplot.close(drawn)


def svg_of(drawn: Any) -> str:
    content = io.StringIO()
    drawn.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r" +$", "", content.getvalue(), flags=re.MULTILINE)


def curves(axes: Any, found: Runs, x: Callable[[Line], float], y: Callable[[Line], float], network: str) -> None:
    """Plot every seed thin and their mean thick."""
    rows = [[(x(line), y(line)) for line in run] for run in found.values()]
    for row in rows:
        axes.plot(*zip(*row, strict=True), color=COLOURS[network], lw=0.8, alpha=0.4)
    if rows:
        mean = np.mean(rows, axis=0).T
        axes.plot(*mean, color=COLOURS[network], lw=2.4, marker=MARKS[network], ms=4, label=TITLES[network])


MARKS = {DIT: "o", UNET: "s"}


def plain_logarithm(axis: Any, values: Sequence[float], show: Callable[[float], str]) -> None:
    """Put labelled ticks at the values, and no labels on minor ticks."""
    axis.set_ticks(values, labels=[show(value) for value in values])
    axis.set_minor_formatter("")


STEPS = ((1, 10), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))
NARROW = 3.0  # ratio of the ends of an axis; below it a logarithm is nearly linear, so evenly spaced ticks do


def plain_values(axis: Any) -> None:
    """Label a logarithmic axis with four to nine round numbers instead of powers of ten."""
    from matplotlib.ticker import MaxNLocator

    low, high = sorted(axis.get_view_interval())
    inside: list[float] = []
    if high < NARROW * low:
        ticks = MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(low, high)
        return plain_logarithm(axis, [tick for tick in ticks if low <= tick <= high], "{:g}".format)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in STEPS:
        ticks = sorted({float(f"{step * 10.0**k:.4g}") for k in decades for step in steps})
        if len(inside := [tick for tick in ticks if low <= tick <= high]) >= 4:
            break
    return plain_logarithm(axis, inside[:: 1 + len(inside) // 9], "{:g}".format)


def thousands(value: float) -> str:
    return f"{value / 1000:.0f}k" if value >= 1000 else f"{value:g}"


def nothing(axes: Any) -> None:
    axes.text(0.5, 0.5, MISSING, ha="center", va="center", transform=axes.transAxes, color=SOFT)
    axes.set(xticks=[], yticks=[])


def scales(lines: Lines) -> str:
    """Guidance of the networks, as in "guidance DiT 1.5, UNet 1"."""
    found = sorted({(line["network"], line["guidance"]) for line in lines})
    return f"guidance {', '.join(f'{TITLES[name]} {scale:g}' for name, scale in found)}"


def source(lines: Lines) -> str:
    """Runs, seeds, commits and machines behind a figure, and the command that makes it again."""
    names = sorted({line["run"] for line in lines})
    families: dict[str, list[int]] = {}
    for name in names:
        families.setdefault(re.sub(r"-seed\d+", "", name), []).extend(map(int, re.findall(r"-seed(\d+)", name)))
    shown = [f"{stem} ({seeds(numbers)})" if numbers else stem for stem, numbers in families.items()]
    commits = ", ".join(sorted({line["commit"][:7] for line in lines}))
    machines = "; ".join(sorted({line["machine"] for line in lines}))
    return f"Runs: {'; '.join(shown)}. Commits: {commits}. Machines: {machines}. Made by `python run.py compare`."


def seeds(numbers: list[int]) -> str:
    numbers = sorted(numbers)
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"seeds {numbers[0]}-{numbers[-1]}"
    return f"seed{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
