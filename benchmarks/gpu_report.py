"""Makes the tables and the picture of docs/gpu.md from the results of a GPU in docs/gpu.jsonl.

    python -m benchmarks.gpu_report [results.jsonl]

With a file of results it prints their tables, and writes nothing.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import ROOT, pages

MODELS = {
    "dit": "DiT, shipped",
    "unet": "UNet, shipped",
    "dit-full": "DiT, full size",
    "dit12-full": "DiT, full size, 12 blocks",
    "unet-full": "UNet, full size",
}
VARIANTS = {
    "floor_us": "floor",
    "ours_us": "**ours**",
    "compiled_graph_us": "torch.compile in a graph",
    "eager_graph_us": "PyTorch in a graph",
    "compiled_us": "torch.compile",
    "eager_us": "PyTorch",
}
SERVERS = {
    "ours": "this service",
    "ours, defaults": "this service, refusing",
    "ours deep": "this service",
    "batch-graph": "batcher, CUDA graphs",
    "batch-graph deep": "batcher, CUDA graphs",
    "batch": "batcher",
    "naive": "one after another",
}
LOADS = {
    "same": "DiT, equal requests",
    "mixed": "mixed requests",
    "npy16": "DiT, 16 images each as npy",
    "second": "UNet, equal requests",
    "both": "both models, equal requests",
}

Results = list[dict[str, Any]]  # the lines of a results file; "part" names the measurement


def read(path: Path) -> Results:
    """The results of a file; those of "steps" also get the times of torch.compile at the same model and rows."""
    results = [json.loads(line) for line in path.read_text().splitlines()]
    compiled = {(r["model"], r["rows"]): r for r in results if r["part"] == "compiled"}
    return [compiled.get((r["model"], r["rows"]), {}) | r if r["part"] == "steps" else r for r in results]


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)])


def figure(value: float | None) -> str:
    """A number of a table, with one decimal below 10; empty for None."""
    return "" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def steps(results: Results) -> str:
    """Microseconds a step by model and rows, in each of VARIANTS."""
    found = sorted(
        (r for r in results if r["part"] == "steps"), key=lambda r: (list(MODELS).index(r["model"]), r["rows"])
    )
    rows = ([MODELS[r["model"]], r["rows"], *(figure(r.get(variant)) for variant in VARIANTS)] for r in found)
    return table(["a step of", "rows", *VARIANTS.values()], rows)


def kernels(results: Results) -> str:
    """Microseconds of each kernel at the smallest and the largest number of rows that were measured."""
    found = [r for r in results if r["part"] == "kernel times" and "kernel" in r]
    (ceiling,) = (r["ceiling_GB_s"] for r in results if r["part"] == "kernel times" and "ceiling_GB_s" in r)
    times = {(r["kernel"], r["rows"]): r for r in found}
    counts, rows = {r["rows"] for r in found} or {0}, []
    fewest, most = min(counts), max(counts)
    for kernel in (kernel for kernel, count in times if count == most and (kernel, fewest) in times):
        few, many = times[kernel, fewest], times[kernel, most]
        theirs = next((r for key, r in many.items() if key.endswith("us") and "ours" not in key), None)
        share = f"{100 * many['GB_s'] / ceiling:.0f} %" if "GB_s" in many else ""
        rows.append([kernel, few["ours_us"], many["ours_us"], figure(theirs), share])
    first, last = (f"{count} row{'s' * (count > 1)}" for count in (fewest, most))
    return table(["kernel", f"{first}, us", f"{last}, us", f"torch, {last}", "of the copy bandwidth"], rows)


def engine(results: Results) -> str:
    """The engine without HTTP, by model and number of images at once."""
    found = [r for r in results if r["part"] == "engine alone" and r["images"] in (1, 8, 64, 128)]
    rows = (
        [
            " and ".join(MODELS[model] for model in r["models"]),
            r["images"],
            figure(r["images_per_s"]),
            figure(r["us_a_step"]),
            figure(r["host_cpu_us_a_step"]),
            f"{100 * r['device_busy']:.0f} %" if "device_busy" in r else "",
        ]
        for r in found
    )
    return table(["model", "images", "images/s", "us a step", "host, us a step", "device busy"], rows)


def service(results: Results) -> str:
    """The servers over HTTP, by load."""
    found = [r for r in results if r["part"] == "load" and "p50_ms" in r]
    order = list(LOADS)
    place = {server: number for number, server in enumerate(SERVERS)}
    found.sort(key=lambda r: ("deep" in r["server"], order.index(r["workload"]), _load(r), place[r["server"]]))
    rows = (
        [
            f"{LOADS[r['workload']]}{' (full size)' if 'deep' in r['server'] else ''}",
            r["load"],
            SERVERS[r["server"]],
            figure(r["answers_per_s"]),
            f"{r['p50_ms']:,.1f} / {r['p95_ms']:,.1f}",
            r["refused"] or "",
            f"{r['server_cpu']:.1f}",
        ]
        for r in found
    )
    head = ["requests", "clients or rate", "server", "answers/s", "p50 / p95 ms", "refused", "cores used"]
    return table(head, rows)


def _load(result: dict[str, Any]) -> tuple[bool, float]:
    """Sorts numbers of clients before rates."""
    is_rate = isinstance(result["load"], str)
    return is_rate, float(result["load"].removesuffix("/s")) if is_rate else result["load"]


def plot(results: Results, path: Path) -> None:
    """Time of a step by its rows, for the shipped networks."""
    import matplotlib
    from matplotlib.figure import Figure

    colours = {
        "floor_us": "0.6",
        "ours_us": "C0",
        "compiled_graph_us": "C1",
        "eager_graph_us": "C2",
        "eager_us": "C3",
    }
    with matplotlib.rc_context({"svg.hashsalt": "gpu", "svg.fonttype": "none"}):
        drawn = Figure(figsize=(9.5, 3.6), layout="constrained")
        for axes, model in zip(drawn.subplots(1, 2, sharey=True), ("dit", "unet"), strict=True):
            found = sorted(
                (r for r in results if r["part"] == "steps" and r["model"] == model), key=lambda r: r["rows"]
            )
            for variant, colour in colours.items():
                points = [(r["rows"], r[variant]) for r in found if r.get(variant)]
                label = VARIANTS[variant].strip("*")
                axes.plot(
                    *zip(*points, strict=True),
                    marker="o",
                    ms=3,
                    color=colour,
                    label=label,
                    ls="--" if "floor" in variant else "-",
                )
            axes.set(xlabel="rows", xscale="log", yscale="log", xticks=[1, 4, 16, 64, 256])
            axes.set_title(MODELS[model], loc="left", fontsize=10)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
        drawn.axes[0].set_ylabel("microseconds a step")
        drawn.axes[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        drawn.savefig(path, metadata={"Date": None})


BLOCKS = {
    "steps": steps,
    "kernel times": kernels,
    "engine alone": engine,
    "load": service,
}  # by part of the results


def fill(page: str, results: Results) -> str:
    """The page with its tables written anew."""
    return pages.fill(page, "gpu", {made.__name__: made(results) for made in BLOCKS.values()})


def show(results: Results) -> str:
    """The tables of those parts that the results have."""
    parts = {result["part"] for result in results}
    return "\n\n".join(made(results) for part, made in BLOCKS.items() if part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=Path)
    if path := parser.parse_args().results:
        print(show(read(path)))
        return
    results, page = read(ROOT / "docs" / "gpu.jsonl"), ROOT / "docs" / "gpu.md"
    page.write_text(fill(page.read_text(), results))
    plot(results, ROOT / "docs" / "gpu.svg")


if __name__ == "__main__":
    main()
