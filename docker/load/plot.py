r"""A picture of a locust run: users, answers a second and latency by model over time.

locust -f docker/load/locustfile.py --host URL --headless -u 60 -r 2 -t 45s --csv run --csv-full-history Saturation
python docker/load/plot.py run_stats_history.csv docs/locust.png
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

Series = dict[str, list[tuple[float, float]]]


def read(path: Path) -> tuple[Series, Series, Series]:
    """Users, answers a second and median latency in ms, over seconds, by the names of the statistics."""
    users, rates, latencies = (defaultdict[str, list[tuple[float, float]]](list) for _ in range(3))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    start = float(rows[0]["Timestamp"])
    for row in rows:
        now, name = float(row["Timestamp"]) - start, row["Name"]
        if name == "Aggregated":
            users["users"].append((now, float(row["User Count"])))
        elif name.startswith("/generate"):
            rates[name.removeprefix("/generate ")].append((now, float(row["Requests/s"])))
            if row["50%"] not in ("N/A", "") and not name.endswith("refused"):
                latencies[name.removeprefix("/generate ")].append((now, float(row["50%"])))
    return users, rates, latencies


def plot(path: Path, picture: Path) -> None:
    figure = Figure(figsize=(8, 7), layout="constrained")
    labels = ("users", "answers a second", "median latency, ms")
    colours: dict[str, str] = {}
    for axes, series, label in zip(figure.subplots(3, sharex=True), read(path), labels, strict=True):
        for name, points in series.items():
            colour = colours.setdefault(name, f"C{len(colours)}")
            axes.plot(*zip(*points, strict=True), color=colour, label=name)
        axes.set_ylabel(label)
        axes.set_ylim(0, None)
        axes.spines[["top", "right"]].set_visible(False)
        if len(series) > 1:
            axes.legend(frameon=False, ncols=2)
    figure.axes[-1].set_xlabel("seconds")
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    plot(Path(sys.argv[1]), Path(sys.argv[2]))
