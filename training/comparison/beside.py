"""Further figures for each verdict, which do not decide it: a text for each `beside` in questions.toml."""

import math
import statistics
from collections.abc import Callable
from functools import partial

from training.comparison import selection as s
from training.comparison.effects import (
    Effects,
    Figure,
    attention_exponent,
    by_seconds,
    d1,
    d2,
    d6,
    exponent,
    fall,
    few_pictures,
    first_reached,
    head_start,
    lowest_losses,
    mean_rule,
    smallest_best,
    step_exponent,
)
from training.comparison.selection import DIT, MISSING, PAIR, TITLES, UNET, Lines, Run
from training.comparison.verdicts import Question, interval
from training.comparison.words import number, percent, points, span

Show = Callable[[float], str]
IMAGES: Figure = lambda line: line["images_seen"]
FLOP: Figure = lambda line: line["train_flop"]
MOST = 0.9  # share of samples that keep a rule, for images_until
ABOUT = {"loss": s.loss, "Frechet ratio": s.ratio, "share of wrong classes": s.wrong}


def figures(question: Question, lines: Lines, agreement: dict[str, str]) -> list[tuple[str, str]]:
    """(name, measured value as text) for each `beside` of a question. agreement: texts of D4 by name.

    Raises:
        ValueError: a `beside` that no function here measures.
    """
    return [(what, text(question.name, what, lines, agreement)) for what in question.beside]


def text(name: str, what: str, lines: Lines, agreement: dict[str, str]) -> str:
    if what.startswith("D4"):
        return agreement.get(what, MISSING)
    if (name, what) not in TEXTS:
        known = ", ".join(f'"{known}"' for question, known in TEXTS if question == name)
        raise ValueError(f'question {name}: beside has "{what}", but training/comparison/beside.py knows {known}')
    return TEXTS[name, what](lines) or MISSING


def over_seeds(effects: Effects, show: Show = number) -> str:
    return span(interval(list(effects.values())), show) if effects else ""


def each(pairs: dict[int, tuple[Run, Run]], figure: Callable[[Run], float], show: Show = number) -> str:
    """The mean of a figure with its interval, for both networks over their paired seeds."""
    if not pairs:
        return ""
    values = zip(*((figure(dit), figure(unet)) for dit, unet in pairs.values()), strict=True)
    return "; ".join(f"{TITLES[n]} {span(interval(list(v)), show)}" for n, v in zip(PAIR, values, strict=True))


def at_end(figure: Figure, show: Show, lines: Lines) -> str:
    return each(d1(lines), lambda run: figure(run[-1]), show)


def started(lines: Lines, what: str, axes: dict[str, Figure | None]) -> str:
    """The UNet's speed over the DiT's to the same figure `what`, by cost: images, FLOP or seconds."""
    pairs = d1(lines)
    parts = [
        f"{name} {over_seeds({k: head_start(*pair, cost, ABOUT[what]) for k, pair in pairs.items()}, doubled)}"
        for name, cost in axes.items()
        if cost and pairs
    ]
    return f"by {what}, the UNet's speed over the DiT's: {', '.join(parts)}" if parts else ""


def by_judge(lines: Lines) -> str:
    """The mean effect of the question by each judge alone."""
    pairs = d1(lines)
    count = min((len(run[-1]["judges"]) for pair in pairs.values() for run in pair), default=0)
    logs = [[math.log(ratio_by(dit, i) / ratio_by(unet, i)) for dit, unet in pairs.values()] for i in range(count)]
    shown = [number(math.exp(statistics.fmean(values))) for values in logs]
    return f"the DiT's Frechet ratio over the UNet's, mean over seeds: {', '.join(shown)}" if shown else ""


def ratio_by(run: Run, judge: int) -> float:
    return run[-1]["judges"][judge]["frechet"]["ratio"]


def doubled(value: float) -> str:
    return number(2**value)


def other_axes(lines: Lines) -> str:
    return started(lines, "loss", {"images": IMAGES, "FLOP": FLOP})


def other_figures(lines: Lines) -> str:
    axes = {"images": IMAGES, "FLOP": FLOP, "seconds": by_seconds(lines)}
    found = list(filter(None, (started(lines, what, axes) for what in list(ABOUT)[1:])))
    return f"{'. '.join(found)}. Each network at its own guidance" if found else ""


def equal_cost(lines: Lines) -> str:
    """The ratio of Frechet ratios at the final cost of the cheaper network, interpolated log-linearly."""
    parts = []
    for name, cost in (("FLOP", FLOP), ("seconds", by_seconds(lines))):
        if cost and (pairs := d1(lines)):
            logs = {k: at_common_cost(dit, unet, cost) for k, (dit, unet) in pairs.items()}
            parts.append(f"at equal {name} {over_seeds(logs, lambda x: number(math.exp(x)))}")
    return f"the DiT's Frechet ratio over the UNet's: {', '.join(parts)}" if parts else ""


def at_common_cost(dit: Run, unet: Run, cost: Figure) -> float:
    common = min(cost(dit[-1]), cost(unet[-1]))
    values = [interpolate([cost(x) for x in run], [s.ratio(x) for x in run], common) for run in (dit, unet)]
    return math.log(values[0] / values[1])


def interpolate(xs: list[float], ys: list[float], x: float) -> float:
    """Log-log interpolation; beyond the ends, the value at the end."""
    import numpy as np

    return float(np.exp(np.interp(math.log(x), np.log(xs), np.log(ys))))


def slopes(figure: Figure, lines: Lines) -> str:
    found = {name: {k: fall(x, figure) for k, x in d2(lines, name).items()} for name in PAIR}
    parts = [f"{TITLES[n]} {over_seeds(v, lambda x: f'{x:.3f}')}" for n, v in found.items() if v]
    return "exponents: " + "; ".join(parts) if parts else ""


def budgets(lines: Lines) -> str:
    """The lowest loss of each budget, and how often the smallest width has it."""
    parts = []
    for name in PAIR:
        if best := smallest_best(lines, name):
            losses = ", ".join(map(number, lowest_losses(lines, name)))
            parts.append(f"{TITLES[name]} {losses}, by the smallest width in {sum(best)} of {len(best)}")
    return "; ".join(parts)


def images_until(rule: str, lines: Lines) -> str:
    """Images seen until MOST of the samples keep a rule; log-log interpolation of the failing share."""
    pairs = d6(lines)
    shown = []
    for position, name in enumerate(PAIR):
        found = [reached(pair[position], rule) for pair in pairs.values()]
        known = [x for x in found if x is not None]
        if known:
            shown.append(
                f"{TITLES[name]} {span(interval(known), lambda x: f'{x:,.0f}')} in {len(known)} of {len(found)}"
            )
        elif found:
            shown.append(f"{TITLES[name]} in none of {len(found)} runs")
    return "; ".join(shown)


def reached(run: Run, rule: str) -> float | None:
    failing = [max(1 - x["rules"][rule], 0.5 / x["rules"]["samples"]) for x in run]
    return first_reached([IMAGES(x) for x in run], failing, 1 - MOST)


def neighbours(lines: Lines) -> str:
    pairs, near = d6(lines), partial(mean_rule, rule="near")
    ahead = {k: near(dit) - near(unet) for k, (dit, unet) in pairs.items()}
    return f"the DiT less the UNet {over_seeds(ahead, points)}; {each(pairs, near, percent)}" if pairs else ""


def distance_alone(lines: Lines) -> str:
    """What the distance costs each network: the share of far patches that match less that of neighbours."""
    pairs = d6(lines)
    ahead = {k: far_less_near(dit) - far_less_near(unet) for k, (dit, unet) in pairs.items()}
    return f"the DiT less the UNet {over_seeds(ahead, points)}" if pairs else ""


def far_less_near(run: Run) -> float:
    return mean_rule(run, "far") - mean_rule(run, "near")


def last_far(lines: Lines) -> str:
    pairs = d6(lines)
    ahead = {k: dit[-1]["rules"]["far"] - unet[-1]["rules"]["far"] for k, (dit, unet) in pairs.items()}
    return f"the DiT less the UNet {over_seeds(ahead, points)}" if pairs else ""


def clear_colours(lines: Lines) -> str:
    return each(d6(lines), lambda run: mean_rule(run, "far_clear"), percent)


def attention_flop(lines: Lines) -> str:
    found = [t["attention_flop"] for t in s.timings(lines, DIT).values()]
    known = [attention_exponent(x) for x in found if {"256", "1024"} <= x.keys()]
    return f"exponent {known[0]:.2f}" if known else ""


def step_flop(lines: Lines) -> str:
    found = [t["step_flop"] for t in s.timings(lines, UNET).values()]
    known = [exponent(x["64"], x["128"], 4) for x in found if {"64", "128"} <= x.keys()]
    return f"exponent {known[0]:.2f}" if known else ""


def small_attention(lines: Lines) -> str:
    found = {k: t.get("attention_seconds", {}) for k, t in s.timings(lines, DIT).items()}
    known = {k: exponent(x["64"], x["256"], 4) for k, x in found.items() if {"64", "256"} <= x.keys()}
    return f"exponent {over_seeds(known, lambda x: f'{x:.2f}')}" if known else ""


def attention_shares(lines: Lines) -> str:
    found = s.attention_share(lines)
    shown = (f"{side} pixels {span(interval(values), percent)}" for side, values in found.items())
    return ", ".join(shown)


def whole_step(lines: Lines) -> str:
    found = {
        k: step_exponent(t) for k, t in s.timings(lines, DIT).items() if {"64", "128"} <= t["step_seconds"].keys()
    }
    return f"from 64 to 128 pixels a side {over_seeds(found, lambda x: f'{x:.2f}')}" if found else ""


def break_even(lines: Lines) -> str:
    """The image size at which a one-row step of both networks takes equally long, from means over processes."""
    both = {name: s.mean_steps(lines, name, "1") for name in PAIR}
    sides = sorted(both[DIT].keys() & both[UNET].keys())
    gaps = [math.log(both[DIT][side] / both[UNET][side]) for side in sides]
    for (a, b), (x, y) in zip(zip(gaps, gaps[1:], strict=False), zip(sides, sides[1:], strict=False), strict=True):
        if a * b <= 0 and a != b:
            return f"about {x * (y / x) ** (a / (a - b)):.0f} pixels a side"
    cheaper = "DiT" if gaps and gaps[0] < 0 else "UNet"
    return f"none of {sides[0]} to {sides[-1]} pixels a side: the {cheaper} is cheaper at all" if gaps else ""


def other_counts(lines: Lines) -> str:
    """Lowest losses by number of training pictures; if D3 has no runs on 3,000 pictures, D1's are used."""
    found = {n: few_pictures(lines, n) for n in (100, 1000, 3000)}
    found[3000] = found[3000] or {
        k: math.log(min(map(s.loss, a)) / min(map(s.loss, b))) for k, (a, b) in d1(lines).items()
    }
    parts = [f"{n:,}: {over_seeds(v, lambda x: number(math.exp(x))) or MISSING}" for n, v in found.items()]
    return f"the DiT's lowest loss over the UNet's, by pictures: {'; '.join(parts)}" if any(found.values()) else ""


def denoisers(lines: Lines) -> str:
    """r2 against each reference, mean over noise levels and runs."""
    parts = []
    for name in PAIR:
        found = [x["probe"]["r2"] for x in s.of(lines, "D5", name, lambda x: "probe" in x)]
        means = [f"{k} {statistics.fmean(statistics.fmean(r[k]) for r in found):.2f}" for k in (found or [{}])[0]]
        parts += [f"{TITLES[name]}: {', '.join(means)}"] if means else []
    return f"r2, mean over noise levels: {'; '.join(parts)}" if parts else ""


def level(position: int, lines: Lines) -> str:
    """Held-out error of the denoised image at one noise level of D1's last point."""
    return at_end(lambda line: line["loss"]["test"]["x0"][position], number, lines)


TEXTS: dict[tuple[str, str], Callable[[Lines], str]] = {
    ("faster-to-train", "the same against images and FLOP"): other_axes,
    ("faster-to-train", "the same with the Frechet ratio and accuracy instead of the loss"): other_figures,
    ("strong-baseline", "accuracy"): partial(at_end, s.accuracy, percent),
    ("strong-baseline", "KID less its floor"): partial(at_end, s.kid, number),
    ("strong-baseline", "precision"): partial(at_end, s.precision, percent),
    ("strong-baseline", "recall"): partial(at_end, s.recall, percent),
    ("strong-baseline", "loss"): partial(at_end, s.loss, number),
    ("strong-baseline", "the same at equal FLOP and seconds"): equal_cost,
    ("strong-baseline", "the same by each judge alone"): by_judge,
    ("more-scalable", "the lines themselves"): partial(slopes, s.loss),
    ("more-scalable", "lowest loss of each budget, and how often the smallest width has it"): budgets,
    ("more-scalable", "Frechet ratio instead of the loss"): partial(slopes, s.ratio),
    ("long-range", "images until 90 % match"): partial(images_until, "far"),
    ("long-range", "the same for two neighbouring patches"): neighbours,
    ("long-range", "far less near: what the distance alone costs"): distance_alone,
    ("long-range", "the same after the last image alone"): last_far,
    ("long-range", "far patches that have clear colours, the same or not"): clear_colours,
    ("quadratic-attention", "FLOP, which is exact"): attention_flop,
    ("quadratic-attention", "the same from 64 to 256 tokens"): small_attention,
    ("quadratic-attention", "share of the attention in a step by size"): attention_shares,
    ("quadratic-attention", "exponent of the whole step"): whole_step,
    ("linear-convolutions", "FLOP, which is exact"): step_flop,
    ("linear-convolutions", "the size at which a step of the DiT costs as much"): break_even,
    ("inductive-bias", "the same for 100, 1,000 and 3,000 pictures"): other_counts,
    ("inductive-bias", "D5: sensitivity fields and r2 against the local, Wiener and optimal denoisers"): denoisers,
    ("local-details", "D1: loss at the lowest noise level"): partial(level, 0),
    ("local-details", "images until 90 % are right"): partial(images_until, "texture"),
    ("global-coherence", "D1: accuracy of the judges"): partial(at_end, s.accuracy, percent),
    ("global-coherence", "D1: loss at the highest noise level"): partial(level, -1),
}
