"""Compute the effect of every question of docs/comparison/questions.toml: a number for each seed.

A seed without complete runs of both networks has no effect, and a question without lines has none at all.
"""

import math
import statistics
from collections.abc import Callable

import numpy as np

from training.comparison.selection import (
    DIT,
    UNET,
    Line,
    Lines,
    Run,
    image_seconds,
    loss,
    of,
    paired,
    ratio,
    runs_of,
    seed_of,
    timings,
    trained_on,
)

Effects = dict[int, float]
Figure = Callable[[Line], float]  # of a line
FEW = 300  # pictures of D3's question
APART = 1.3  # least ratio of FLOP between two budgets of D2; runs of one budget differ by rounding
BUDGETS, WIDTHS = 3, 4  # of D2


def effects_of(lines: Lines) -> dict[str, Effects]:
    """By the names of the questions."""
    return {name: effect(lines) for name, effect in EFFECTS.items()}


def d1(lines: Lines) -> dict[int, tuple[Run, Run]]:
    return paired(runs_of(lines, "D1"))


def by_seconds(lines: Lines) -> Figure | None:
    """Training seconds of a line: its images times the seconds of one. None without timings.

    A seed takes the timing of its own number, so the interval over seeds covers the error of the timings, too.
    """
    seconds = image_seconds(lines)
    means = {network: statistics.fmean(by_seed.values()) for network, by_seed in seconds.items()}

    def cost(line: Line) -> float:
        network = line["network"]
        return line["images_seen"] * seconds[network].get(seed_of(line), means[network])

    return cost if seconds else None


def first_reached(xs: list[float], ys: list[float], target: float) -> float | None:
    """The x at which y first falls to the target, by log-log interpolation; None if it never does."""
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if y <= target:
            if i == 0:
                return x
            share = math.log(ys[i - 1] / target) / math.log(ys[i - 1] / y)
            return xs[i - 1] * (x / xs[i - 1]) ** share
    return None


def head_start(dit: Run, unet: Run, cost: Figure, figure: Figure) -> float:
    """log2 of (the cost of the whole run that ends with the higher, worse figure) / (the other's cost to reach it).

    Positive if the UNet is the better network.
    """
    slow, fast, sign = (dit, unet, 1) if figure(dit[-1]) >= figure(unet[-1]) else (unet, dit, -1)
    reached = first_reached([cost(x) for x in fast], [figure(x) for x in fast], figure(slow[-1]))
    assert reached, "it ends lower"
    return sign * math.log2(cost(slow[-1]) / reached)


def faster_to_train(lines: Lines) -> Effects:
    cost = by_seconds(lines)
    return {seed: head_start(*pair, cost, loss) for seed, pair in d1(lines).items()} if cost else {}


def strong_baseline(lines: Lines) -> Effects:
    return {seed: math.log(ratio(dit[-1]) / ratio(unet[-1])) for seed, (dit, unet) in d1(lines).items()}


def more_scalable(lines: Lines) -> Effects:
    falls = {network: {s: fall(x, loss) for s, x in d2(lines, network).items()} for network in (DIT, UNET)}
    return {seed: falls[DIT][seed] - falls[UNET][seed] for seed in falls[DIT] if seed in falls[UNET]}


def d2(lines: Lines, network: str) -> dict[int, list[Lines]]:
    """Lines of each budget, by seed. A network is identified by its model, because widths have names of their own.

    Seeds without all budgets and widths are left out.
    """
    mine = of(lines, "D2", keep=lambda x: "loss" in x and x["recipe"]["model"] == network)
    found = {}
    for seed in sorted({seed_of(x) for x in mine}):
        budgets = split_budgets([x for x in mine if seed_of(x) == seed])
        if len(budgets) == BUDGETS and all(len({x["flop_per_row"] for x in b}) >= WIDTHS for b in budgets):
            found[seed] = budgets
    return found


def lowest_losses(lines: Lines, network: str) -> list[float]:
    """At the best width of each budget of D2, mean over the seeds; [] without whole seeds."""
    found = d2(lines, network).values()
    return [statistics.fmean(min(map(loss, budget)) for budget in of_all) for of_all in zip(*found, strict=True)]


def smallest_best(lines: Lines, network: str) -> list[bool]:
    """Whether the smallest width has the lowest loss, for each budget of D2 and each seed."""
    budgets = [budget for of_seed in d2(lines, network).values() for budget in of_seed]
    return [min(b, key=loss)["flop_per_row"] == min(x["flop_per_row"] for x in b) for b in budgets]


def split_budgets(lines: Lines) -> list[Lines]:
    found: list[Lines] = []
    for line in sorted(lines, key=lambda x: x["train_flop"]):
        if not found or line["train_flop"] > APART * found[-1][-1]["train_flop"]:
            found.append([])
        found[-1].append(line)
    return found


def fall(budgets: list[Lines], figure: Figure) -> float:
    """Exponent of the power law by which a figure falls with FLOP, each budget at its best width."""
    best = [min(budget, key=figure) for budget in budgets]
    flop, values = np.log([x["train_flop"] for x in best]), np.log([figure(x) for x in best])
    return -float(np.polyfit(flop, values, 1)[0])


def d6(lines: Lines) -> dict[int, tuple[Run, Run]]:
    return paired(runs_of(lines, "D6", lambda x: "rules" in x))


def long_range(lines: Lines) -> Effects:
    return {seed: mean_rule(dit, "far") - mean_rule(unet, "far") for seed, (dit, unet) in d6(lines).items()}


def mean_rule(run: Run, rule: str) -> float:
    return statistics.fmean(line["rules"][rule] for line in run)


def last_rule(run: Run, rule: str) -> float:
    return run[-1]["rules"][rule]


def local_details(lines: Lines) -> Effects:
    return {s: last_rule(unet, "texture") - last_rule(dit, "texture") for s, (dit, unet) in d6(lines).items()}


def global_coherence(lines: Lines) -> Effects:
    return {s: last_rule(dit, "coherent") - last_rule(unet, "coherent") for s, (dit, unet) in d6(lines).items()}


def exponent(small: float, large: float, factor: float) -> float:
    """Exponent of a power law that grows from `small` to `large` while the size grows by `factor`."""
    return math.log(large / small) / math.log(factor)


def quadratic_attention(lines: Lines) -> Effects:
    """Of the DiT; a timing may lack these sizes."""
    found = {seed: timing.get("attention_seconds", {}) for seed, timing in timings(lines, DIT).items()}
    return {seed: attention_exponent(t) - 2 for seed, t in found.items() if {"256", "1024"} <= t.keys()}


def attention_exponent(by_tokens: dict[str, float]) -> float:
    return exponent(by_tokens["256"], by_tokens["1024"], 1024 / 256)


def linear_convolutions(lines: Lines) -> Effects:
    found = timings(lines, UNET).items()
    return {s: step_exponent(t) - 1 for s, t in found if {"64", "128"} <= t["step_seconds"].keys()}


def step_exponent(timing: Line) -> float:
    """Exponent of a one-row step's time in the number of pixels, from 64 to 128 a side."""
    steps = timing["step_seconds"]
    return exponent(steps["64"]["1"], steps["128"]["1"], (128 / 64) ** 2)


def inductive_bias(lines: Lines) -> Effects:
    return few_pictures(lines, FEW)


def few_pictures(lines: Lines, images: int) -> Effects:
    """ln of the DiT's lowest loss over the UNet's, trained on so many pictures."""
    found = paired(runs_of(lines, "D3", trained_on(images)))
    return {seed: math.log(min(map(loss, dit)) / min(map(loss, unet))) for seed, (dit, unet) in found.items()}


EFFECTS: dict[str, Callable[[Lines], Effects]] = {
    "faster-to-train": faster_to_train,
    "strong-baseline": strong_baseline,
    "more-scalable": more_scalable,
    "long-range": long_range,
    "quadratic-attention": quadratic_attention,
    "linear-convolutions": linear_convolutions,
    "inductive-bias": inductive_bias,
    "local-details": local_details,
    "global-coherence": global_coherence,
}
