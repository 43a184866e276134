"""Sizes, FLOP and budgets of both networks, as they stand beside a verdict."""

import statistics
from collections.abc import Callable

from training.comparison.selection import MISSING, PAIR, TITLES, Line, Lines, image_seconds, of
from training.comparison.words import listed, parameters, sized


def networks(lines: Lines, measurement: str) -> str:
    """Size, FLOP and budget of both networks, as they stand beside a verdict."""
    return "; ".join(f"{TITLES[name]}{network_facts(lines, measurement, name)}" for name in PAIR)


def network_facts(lines: Lines, measurement: str, name: str) -> str:
    """Of all widths that the measurement has; one that trains nothing looks at the network of D1."""
    mine = of(lines, measurement, keep=lambda x: x.get("recipe", x.get("settings", {})).get("model") == name)
    trained = sorted(sized(mine), key=lambda x: (x["flop_per_row"], x["images_seen"]))
    known = trained or sized([*of(lines, "D1", name), *of(lines, "D1-rates", name)])
    if not known:
        return f": {MISSING}"
    facts = f"{arguments(known)}: {each(known, lambda x: f'{parameters(x):.2f}')} M parameters"
    if timed := [x for x in mine if "timing" in x]:
        sides = timed[0]["timing"]["step_flop"].items()
        return f"{facts}, MFLOP a row: " + ", ".join(f"{flop / 1e6:,.0f} at {side}x{side}" for side, flop in sides)
    facts += f", {each(known, mflop)} MFLOP a row"
    if not trained or "guidance" not in trained[0]:
        return facts
    if (seconds := image_seconds(lines).get(name)) and len({x["flop_per_row"] for x in trained}) == 1:
        facts += f", {1000 * statistics.fmean(seconds.values()):.1f} ms a training image"
    ends = list({x["run"]: x for x in trained}.values())
    return (
        f"{facts}, {each(ends, images_seen)} images, {each(ends, tflop)} TFLOP of training, "
        f"learning rate {each(trained, rate)}, guidance {each(trained, scale)}"
    )


def each(lines: Lines, show: Callable[[Line], str]) -> str:
    """What is shown of the lines, each only once, in their order."""
    return listed(list(dict.fromkeys(map(show, lines))))


def arguments(lines: Lines) -> str:
    """Arguments of the networks, such as " (base_channels 8, 12 and 16)"; "" without any."""
    found = [x["recipe"].get("arguments", {}) for x in lines if "recipe" in x]
    names = dict.fromkeys(name for one in found for name in one)
    shown = [f"{name} {listed(list(dict.fromkeys(f'{one[name]}' for one in found)))}" for name in names]
    return f" ({', '.join(shown)})" if shown else ""


def mflop(line: Line) -> str:
    return f"{line['flop_per_row'] / 1e6:.0f}"


def tflop(line: Line) -> str:
    return f"{line['train_flop'] / 1e12:.0f}"


def images_seen(line: Line) -> str:
    return f"{line['images_seen']:,}"


def rate(line: Line) -> str:
    return f"{line['recipe']['lr']:g}"


def scale(line: Line) -> str:
    return f"{line['guidance']:g}"
