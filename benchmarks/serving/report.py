"""Makes the tables and the picture of docs/serving.md and the README from docs/serving.json."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import pages
from benchmarks.serving.load import LATE
from benchmarks.serving.summary import is_disturbed

Columns = dict[str, Any]  # docs/serving.json: by name of the system, its runs, date, commit and machine
Result = dict[str, Any]  # of a run; see summary.summarise

TITLES = {
    "ideal": "ideal",
    "now": "this service",
    "fastapi": "FastAPI batcher",
    "litserve": "LitServe",
}
LOADS = {"W2-25": 0.25, "W2-50": 0.5, "W2-70": 0.7, "W2-90": 0.9, "W5": 1.5}
CLIENTS = (1, 4, 16, 64, 256)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def good(result: Result) -> str:
    late = result["outcomes"].get(LATE, 0) / result["sent"]
    bad = [(result["refused"], "refused"), (late, "timed out")]
    return ", ".join([f"{result['good']:.0f}/s", *(f"{percent(share)} {what}" for share, what in bad if share)])


def latencies(result: Result) -> str:
    return "none" if result["p50_ms"] is None else f"{result['p50_ms']:.0f} / {result['p95_ms']:.0f} ms"


def recovery(result: Result) -> str:
    seconds = result["recovery_seconds"]
    return "not within 8 s" if seconds is None else f"{seconds:.0f} s"


def cpu(result: Result) -> str:
    return f"{result['cpu_ms']:.2f} ms" if "cpu_ms" in result else ""


def engine(result: Result) -> str:
    return f"{result['engine_cores']:.2f}" if result.get("engine_cores") else ""


def p50(result: Result) -> str:
    return f"{result['p50_ms']:.1f} ms"


def unanswered(result: Result) -> str:
    return percent(result["unanswered_rows"]) if "unanswered_rows" in result else ""


def images(result: Result) -> str:
    return f"{result['images']:,.0f}/s"


Row = tuple[str, str, Callable[[Result], str]]  # title, workload, what makes a cell of its result
HEAD: tuple[Row, ...] = (
    ("one client, 20 steps: p50", "W4", p50),
    ("64 clients, 20 steps: images", "W1", images),
    ("50 % load: good answers", "W2-50", good),
    ("70 % load: good answers", "W2-70", good),
    ("150 % load: good answers", "W5", good),
    ("CPU an answer, 70 % load", "W2-70", cpu),
)
ROWS: tuple[Row, ...] = (
    ("W4: one client, p50", "W4", p50),
    ("W1: 64 clients, images", "W1", images),
    *((f"W2: {percent(load)} load, good answers", name, good) for name, load in LOADS.items() if name != "W5"),
    ("W2: 50 % load, p50 / p95", "W2-50", latencies),
    ("W2: 70 % load, p50 / p95", "W2-70", latencies),
    ("W5: 150 % load, good answers", "W5", good),
    ("W5: recovered from the burst after", "W5", recovery),
    ("W6: 30 % leave, good answers", "W6", good),
    ("W6: rows run for clients that left", "W6", unanswered),
    *((f"CPU an answer, {name}", name, cpu) for name in ("W1", "W2-70", "W5")),
)
FAST: tuple[Row, ...] = (
    *((f"{count} client{'s' * (count > 1)}: images", f"H-{count}", images) for count in CLIENTS),
    ("1 client: p50", "H-1", p50),
    ("16 clients, 16 images each as npy: images", "H-npy", images),
    ("CPU an answer, 16 clients", "H-16", cpu),
    *((f"cores of the engine's process, {count} clients", f"H-{count}", engine) for count in (16, 256)),
)


def table(columns: Columns, rows: Iterable[Row]) -> str:
    """A table with a column for each system. A star marks a run that was disturbed (is_disturbed)."""
    shown = [name for name in TITLES if name in columns]
    lines = [f"| | {' | '.join(TITLES[name] for name in shown)} |", "|---|" + "---|" * len(shown)]
    for text, workload, cell in rows:
        results = [columns[name]["runs"].get(workload) for name in shown]
        cells = [cell(result) + _mark(result) if result else "" for result in results]
        lines += [f"| {text} | {' | '.join(cells)} |"] if any(cells) else []
    return "\n".join(lines)


def _mark(result: Result) -> str:
    return " *" if is_disturbed(result) else ""


def class_table(columns: Columns, column: str) -> str:
    """Shares of the requests in time by model and by number of steps, each also over the ideal's share."""
    runs, ideal = columns[column]["runs"], columns["ideal"]["runs"]
    names = [name for name in LOADS if name in runs and name in ideal]
    classes = ["dit", "unet", "10", "20", "50", "100"]
    lines = ["| load | DiT | UNet | 10 steps | 20 | 50 | 100 |", "|---|---|---|---|---|---|---|"]
    for name in names:
        pairs = [(runs[name]["in_time"].get(each, 0.0), ideal[name]["in_time"].get(each, 0.0)) for each in classes]
        cells = [f"{percent(ours)} ({ours / best:.2f})" if best else percent(ours) for ours, best in pairs]
        lines.append(f"| {percent(LOADS[name])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def when(columns: Columns) -> str:
    """A line for each system: commit, date, machine."""
    facts = [(TITLES[name], columns[name]) for name in TITLES if name in columns]
    lines = [
        f"- {title}: commit {f['commit']}, {f['date']}, Python {f['python']}, {f['cores']} cores"
        for title, f in facts
    ]
    return "\n".join(lines)


def blocks(columns: Columns) -> dict[str, str]:
    """The blocks of the pages by name; see benchmarks.pages."""
    return {
        "summary": table(columns, HEAD),
        "accelerator": table(columns, ROWS),
        "classes": class_table(columns, "now") if {"now", "ideal"} <= set(columns) else "",
        "fast": table(columns, FAST),
        "when": when(columns),
    }


def fill(page: str, columns: Columns) -> str:
    """The page with its blocks written anew."""
    return pages.fill(page, "serving", blocks(columns))


def write(columns: Columns, root: Path) -> None:
    """Write the tables into README.md and docs/serving.md below root, and draw docs/serving.svg."""
    for page in (root / "README.md", root / "docs" / "serving.md"):
        page.write_text(fill(page.read_text(), columns))
    plot(columns, root / "docs" / "serving.svg")


def plot(columns: Columns, path: Path) -> None:
    """Good answers by load, and images a second by clients with the steps of an H100."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "serving", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9.5, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for number, (name, title) in enumerate(TITLES.items()):
            runs = columns.get(name, {"runs": {}})["runs"]
            style: dict[str, Any] = {"color": f"C{number - 1}", "marker": "o", "ms": 4}
            style |= {"color": "0.5", "ls": "--"} if name == "ideal" else {}
            loads = [(100 * load, runs[each]["good"]) for each, load in LOADS.items() if each in runs]
            clients = [(count, runs[f"H-{count}"]["images"]) for count in CLIENTS if f"H-{count}" in runs]
            for axes, points in ((left, loads), (right, clients)):
                if points:
                    axes.plot(*zip(*points, strict=True), label=title, **style)
        left.set(xlabel="load, % of what full steps can do", ylabel="good answers a second", ylim=(0, None))
        right.set(xlabel="clients", ylabel="images a second", xscale="log", yscale="log", xticks=CLIENTS)
        right.xaxis.set_major_formatter("{x:g}")
        right.minorticks_off()
        left.set_title("2 to 7 ms a step, mixed requests", loc="left", fontsize=10)
        right.set_title("0.1 to 0.4 ms a step, 10 steps each", loc="left", fontsize=10)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        for name, height in {"fastapi": 12, "litserve": 28}.items():
            if "W5" in columns.get(name, {"runs": {}})["runs"]:  # both lines lie on zero
                text = f"{TITLES[name]}: {columns[name]['runs']['W5']['good']:.0f}/s at 150 %"
                left.text(150, height, text, ha="right", fontsize=8, color="0.35")
        right.legend(frameon=False, fontsize=8)
        figure.savefig(path, metadata={"Date": None})
