"""Makes the tables and the picture of docs/cpu.md from docs/cpu.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import pages
from benchmarks.cpu.variants import BACKENDS, BASELINE

Results = Mapping[str, Any]  # docs/cpu.json, whose keys are measured, rows and served

TITLES = {
    "dit": "DiT, shipped",
    "unet": "UNet, shipped",
    "full-dit": "DiT, full size (`DIT()`)",
    "full-unet": "UNet, full size (`UNet()`)",
}
NOTHING = "Nothing has been measured yet."
PICTURE = "![Rows a second by rows of a forward, for every way and network](cpu.svg)"
BUSY = 0.1  # mean cores that other programs used, above which the page warns


def rows_tables(results: Results) -> str:
    """A table for each network. Its cells are rows a second, and in brackets the ratio to BASELINE."""
    tables = [rows_table(TITLES[name], variants) for name, variants in results["rows"].items()]
    return "\n\n".join([*tables, PICTURE]) if tables else NOTHING


def rows_table(title: str, variants: Mapping[str, Mapping[str, float]]) -> str:
    base = variants[BASELINE]
    lines = [f"| {title} | {' | '.join(rows_of(count) for count in base)} |", "|---" * (1 + len(base)) + "|"]
    for variant, speeds in variants.items():
        ratios = {rows: f" ({speed / base[rows]:.1f}x)" * (variant != BASELINE) for rows, speed in speeds.items()}
        cells = [f"{speed:,.0f}{ratios[rows]}" for rows, speed in speeds.items()]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rows_of(count: str) -> str:
    return f"{count} row{'s' * (count != '1')}"


def served_table(results: Results) -> str:
    lines = ["| | images/s | mean rows of a step | the service, rows/s | the network alone, rows/s | share |"]
    lines += ["|---" * 6 + "|"]
    for name, found in served(results).items():
        cells = f"{found['images']:.1f} | {found['rows_a_step']:.1f} | {found['served']:,.0f}"
        lines.append(f"| {name} | {cells} | {found['alone']:,.0f} | {100 * found['share']:.0f} % |")
    return "\n".join(lines) if len(lines) > 2 else NOTHING


def quality_table(results: Results) -> str:
    lines = ["| | draft | default | best | one draft | one default | one best |", "|---" * 7 + "|"]
    for name, found in served(results).items():
        if "images_of" in found:
            cells = [f"{rate:.0f}/s" for rate in found["images_of"].values()]
            cells += [f"{1000 * seconds:.1f} ms" for seconds in found["seconds_of"].values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else NOTHING


def served(results: Results) -> dict[str, Mapping[str, Any]]:
    """Figures of the service, by network and backend in words."""
    return {
        f"{TITLES[model].partition(',')[0]}, {BACKENDS[backend]}": found
        for model, backends in results["served"].items()
        for backend, found in backends.items()
    }


def when(results: Results) -> str:
    """Date, commit, machine and versions, and whether other programs were busy."""
    facts = results["measured"]
    if not facts:
        return NOTHING
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    others, warning = facts["elsewhere_cores"], ", so trust ratios only"
    return (
        f"Measured on {facts['date']} at commit {facts['commit']}: "
        f"{facts['threads']} threads, {facts['processor']}.\n"
        f"Versions: {versions}.\n"
        f"Other programs used {others:.2f} cores meanwhile{warning * (others > BUSY)}."
    )


def blocks(results: Results) -> dict[str, str]:
    """The blocks of the page by name; see benchmarks.pages."""
    tables = {"rows": rows_tables(results), "served": served_table(results), "qualities": quality_table(results)}
    return tables | {"when": when(results)}


def write(results: Results, folder: Path) -> None:
    """Write the picture, and the page if the folder has one."""
    if results["rows"]:
        plot(results, folder / "cpu.svg")
    page = folder / "cpu.md"
    if page.exists():
        page.write_text(pages.fill(page.read_text(), "cpu", blocks(results)))


def plot(results: Results, path: Path) -> None:
    """A panel for each network: rows a second by rows of a forward."""
    import matplotlib
    from matplotlib.figure import Figure

    networks = results["rows"]
    variants = list(dict.fromkeys(variant for measured in networks.values() for variant in measured))
    with matplotlib.rc_context({"svg.hashsalt": "cpu", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9.5, 6.4), layout="constrained")
        panels = figure.subplots(2, 2).flat
        for (name, measured), axes in zip(networks.items(), panels, strict=False):
            for variant, speeds in measured.items():
                colour, line = ("0.4", "--") if variant == BASELINE else (f"C{variants.index(variant)}", "-")
                places = [int(rows) for rows in speeds]
                axes.plot(places, list(speeds.values()), color=colour, ls=line, marker="o", ms=4, label=variant)
            counts = [int(rows) for rows in measured[BASELINE]]
            axes.set(
                xscale="log", xticks=counts, xlabel="rows of a forward", ylabel="rows a second", ylim=(0, None)
            )
            axes.xaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
            axes.set_title(TITLES[name].replace("`", ""), loc="left", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
        lines = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        for axes in panels:  # the rest, of networks that were not measured
            axes.set_visible(False)
        figure.savefig(path, metadata={"Date": None})
