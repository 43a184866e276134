"""Figures of memorisation with few pictures (D3), of rules (D6), and of comparison with other denoisers (D5)."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from training.comparison import selection as s
from training.comparison.agreement import output_agreement
from training.comparison.drawing import (
    COLOURS,
    INK,
    MARKS,
    SOFT,
    Picture,
    curves,
    figure,
    plain_logarithm,
    plain_values,
    scales,
    source,
    thousands,
)
from training.comparison.selection import PAIR, TITLES, Line, Lines, Run, Runs
from training.comparison.words import missing

RULES = {
    "far": "two far patches match",
    "near": "two neighbours match",
    "texture": "the texture is right",
    "coherent": "all parts fit",
}
DASHES = ("-", "--", ":", "-.")
ALL = 3000  # training pictures of the digits


def rules(lines: Lines) -> Picture | str:
    both = s.runs_of(lines, "D6", lambda x: "rules" in x)
    used = [line for runs in both.values() for run in runs.values() for line in run]
    if not used:
        return missing("D6")
    with figure(4, 1, (8.6, 2.7), apart=0.2, sharey=True) as (grid, svg):
        for axes, (rule, title) in zip(grid[0], RULES.items(), strict=True):
            for name, runs in both.items():
                curves(axes, runs, lambda x: x["images_seen"], lambda x, rule=rule: x["rules"][rule], name)
            if real := [line["rules_real"][rule] for line in used if "rules_real" in line]:
                axes.axhline(statistics.fmean(real), color=SOFT, lw=0.9, ls="--")
            axes.set(xscale="log", ylim=(-0.02, 1.04), title=title, xlabel="images seen")
            plain_logarithm(axes.xaxis, sorted({x["images_seen"] for x in used})[::2], thousands)
        grid[0, 0].set_ylabel("share of samples")
        grid[0, 1].legend(loc="lower right")
        drawn = svg()
    caption = f"Share of samples that keep a rule of the synthetic pictures. Dashed: real pictures. {source(used)}"
    return Picture(drawn, "Share of samples that keep each rule against images seen.", caption, "rules.svg")


def few_pictures(lines: Lines) -> Picture | str:
    """D3, with D1's runs where D3 has none of all pictures."""
    counts = sorted({x["train_images"] for x in s.of(lines, "D3", keep=lambda x: "loss" in x)})
    found = {n: s.runs_of(lines, "D3", s.trained_on(n)) for n in counts}
    if counts and ALL not in found:
        found[ALL] = s.runs_of(lines, "D1")
    used = [line for both in found.values() for runs in both.values() for run in runs.values() for line in run]
    if not used:
        return missing("D3")
    with figure(3, 1, (8.6, 3.0)) as (grid, svg):
        by_count(grid[0, 0], found, lambda run: min(map(s.loss, run)), "lowest loss, held out")
        by_count(grid[0, 1], found, lambda run: 100 * run[-1]["copies"], "copies at the end, %")
        over_images(grid[0, 2], found)
        grid[0, 0].set_yscale("log")
        plain_values(grid[0, 0].yaxis)
        plain_values(grid[0, 2].yaxis)
        grid[0, 0].legend()
        drawn = svg()
    caption = (
        "Left and middle: against the number of training pictures. A copy is a sample whose nearest training "
        "picture is under a third as far as the second nearest. The end is 48,000 images of training with 100 "
        "pictures, and 96,000 with more. Right: held-out loss while training. "
        f"Samples have the {scales(used)}. {source(used)}"
    )
    alt = "Lowest loss and share of copies against the number of training pictures, and loss against images seen."
    return Picture(drawn, alt, caption, "few.svg")


def by_count(axes: Any, found: dict[int, dict[str, Runs]], value: Callable[[Run], float], title: str) -> None:
    for name in PAIR:
        values = {n: [value(run) for run in both[name].values()] for n, both in found.items() if both[name]}
        for n, ys in values.items():
            axes.plot([n] * len(ys), ys, MARKS[name], color=COLOURS[name], ms=3, alpha=0.4)
        means = [statistics.fmean(ys) for ys in values.values()]
        axes.plot(list(values), means, color=COLOURS[name], lw=2.2, marker=MARKS[name], ms=4, label=TITLES[name])
    axes.set(xscale="log", xlabel="training pictures", title=title)
    plain_logarithm(axes.xaxis, list(found), thousands)


def over_images(axes: Any, found: dict[int, dict[str, Runs]]) -> None:
    """Means over seeds; a dash pattern a number of pictures."""
    for dash, (n, both) in zip(DASHES, found.items(), strict=False):
        axes.plot([], [], dash, color=SOFT, label=f"{n:,} pictures")
        for name, runs in both.items():
            if runs:
                mean = np.mean([[(x["images_seen"], s.loss(x)) for x in run] for run in runs.values()], axis=0)
                axes.plot(*mean.T, dash, color=COLOURS[name], lw=1.5)
    axes.set(xscale="log", yscale="log", xlabel="images seen", title="loss, held out")
    all_runs = [run for both in found.values() for runs in both.values() for run in runs.values()]
    plain_logarithm(axes.xaxis, sorted({x["images_seen"] for run in all_runs for x in run})[::2], thousands)
    axes.legend(fontsize=8, handlelength=2.6)
    axes.set_ylim(top=1.35 * axes.get_ylim()[1])  # room for the legend above the curves


PANELS: dict[str, Callable[[Line], list[float]]] = {
    "r2, optimal": lambda probe: probe["r2"]["optimal"],
    "r2, Wiener": lambda probe: probe["r2"]["wiener"],
    "r2, local": lambda probe: probe["r2"]["local"],
    "error of a shift": lambda probe: probe["shift_error"],
    "reach, pixels": lambda probe: probe.get("reach", [float("nan")] * len(probe["u"])),
}


def denoisers(folder: Path, lines: Lines) -> Picture | str:
    """r2 against the analytic denoisers, the error of shifted inputs, and the reach of the sensitivity."""
    used = s.of(lines, "D5", keep=lambda x: "probe" in x)
    if not used:
        return missing("D5")
    with figure(3, 2, (8.6, 4.9), apart=0.42, between=0.5) as (grid, svg):
        for axes, (title, value) in zip(grid.flat, PANELS.items(), strict=False):
            for name in PAIR:
                found = [line["probe"] for line in used if line["network"] == name]
                by_u(axes, [(probe["u"], value(probe)) for probe in found], name)
            axes.set_title(title)
            if title[:2] == "r2":
                axes.set_ylim(bottom=max(-1, axes.get_ylim()[0]))
        if (wiener := used[0]["probe"].get("shift_errors_wiener")) is not None:
            asked = np.mean([wiener["1"], wiener["2"]], axis=0)
            grid[1, 0].plot(used[0]["probe"]["u"], asked, color=SOFT, lw=1, ls="--")
        for row in both_networks(folder, used):
            grid[1, 2].plot(used[0]["probe"]["u"], row, color=INK, lw=1)
        grid[1, 2].set_title("r2, UNet and DiT of one seed")
        for axes in grid[1]:
            axes.set_xlabel("noise time u")
        grid[0, 0].legend()
        drawn = svg()
    caption = (
        "How well three denoisers, computed from the training pictures alone, predict the network's answer (r2); "
        "below -1 is cut off. Error of a shift: how much of an answer changes when its input is shifted "
        "by 1 or 2 pixels. Dashed: of the Wiener denoiser, which is what the data ask for. Each panel has a scale "
        "of its own. "
        f"Reach: mean distance of the input pixels that one output pixel depends on. {source(used)}"
    )
    return Picture(drawn, "r2 of both networks against three denoisers, by noise level.", caption, "denoisers.svg")


def both_networks(folder: Path, used: Lines) -> list[list[float]]:
    """output_agreement of both networks of one seed, L numbers for each seed."""
    outputs: dict[int, dict[str, np.ndarray]] = {}
    for line in used:
        path = folder / f"{line['run']}.npz"
        if path.exists() and line["network"] in PAIR:
            with np.load(path, allow_pickle=False) as arrays:
                outputs.setdefault(s.seed_of(line), {})[line["network"]] = arrays["outputs"]
    return [output_agreement(*both.values()) for _, both in sorted(outputs.items()) if len(both) == len(PAIR)]


def by_u(axes: Any, rows: list[tuple[list[float], list[float]]], name: str) -> None:
    for u, values in rows:
        axes.plot(u, values, color=COLOURS[name], lw=0.8, alpha=0.4)
    if rows:
        mean = np.mean([values for _, values in rows], axis=0)
        axes.plot(rows[0][0], mean, color=COLOURS[name], lw=2.2, marker=MARKS[name], ms=4, label=TITLES[name])
