"""Findings in plain words, and the summary paragraph, which claims no more than the verdicts."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from training.comparison.effects import lowest_losses, smallest_best
from training.comparison.selection import DIT, MISSING, PAIR, TITLES, UNET, Line, Lines, of
from training.comparison.verdicts import FAILS, HOLDS, UNDECIDED, Finding, Interval, Question


def number(value: float, digits: int = 3) -> str:
    """Rounded to so many significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    return f"{100 * share:.1f} points"


def span(known: Interval, show: Callable[[float], str] = number) -> str:
    """The mean and its interval; a unit after a space is said once."""
    if known.low is None or known.high is None:
        return f"{show(known.mean)} (one seed, so no interval)"
    ends = (known.low, known.high)
    if show is percent:  # Student's interval of a share may end beyond what is possible
        ends = max(0.0, known.low), min(1.0, known.high)
    low, high = (show(end).partition(" ")[0] for end in ends)
    return f"{show(known.mean)} ({low} to {high})"


def mirrored(known: Interval) -> Interval:
    low, high = (None if end is None else -end for end in (known.high, known.low))
    return Interval(-known.mean, low, high, known.n)


def faster(known: Interval) -> str:
    (name, other), known = (("UNet", "DiT"), known) if known.mean >= 0 else (("DiT", "UNet"), mirrored(known))
    return f"the {name} reaches the {other}'s last loss {span(known, lambda x: number(2**x))} times as fast"


def times(what: str) -> Callable[[Interval], str]:
    return lambda known: f"the DiT's {what} is {span(known, lambda x: number(math.exp(x)))} times the UNet's"


def ahead(name: str) -> Callable[[Interval], str]:
    """The share of the network that is ahead, less the other's; name: whose share less the other's is positive."""
    other = {"DiT": "UNet", "UNet": "DiT"}[name]

    def words(known: Interval) -> str:
        leader, known = (name, known) if known.mean >= 0 else (other, mirrored(known))
        return f"the {leader} is ahead by {span(known, points)}"

    return words


def power(of_right: float) -> Callable[[Interval], str]:
    return lambda known: f"exponent {span(known, lambda x: f'{of_right + x:.2f}')}"


@dataclass(frozen=True)
class Words:
    """How one question is spoken of. better: the network that the sentence favours, "" where it is about costs."""

    topic: str  # names it in a list
    when: str  # continues "use the ... when"
    better: str
    effect: Callable[[Interval], str]
    bar: Callable[[float], str]  # what the verdict takes, from the margin
    needs: str = ""  # measurements, where the question's own is not all


WORDS: dict[str, Words] = {
    "faster-to-train": Words(
        "the time to train", "the time to a low denoising loss counts", UNET, faster,
        lambda m: f"{number(2**m)} times as fast", "D1 and D8",
    ),
    "strong-baseline": Words(
        "the Frechet distance", "samples must have a low Frechet distance", UNET, times("Frechet ratio"),
        lambda m: f"the UNet's ratio at most {number(math.exp(m))} times the DiT's",
    ),
    "more-scalable": Words(
        "the gain by more compute", "", "",
        lambda known: f"the DiT's exponent less the UNet's: {span(known, lambda x: f'{x:+.3f}')}",
        lambda m: f"an exponent larger by {m:g}",
    ),
    "long-range": Words(
        "parts far apart", "parts far apart must match after little training", DIT, ahead("DiT"),
        lambda m: f"{100 * m:g} points, mean over the training",
    ),
    "quadratic-attention": Words(
        "the time of plain attention", "", "", power(2), lambda m: f"an exponent within {m:g} of 2"
    ),
    "linear-convolutions": Words(
        "the time of convolutions", "", "", power(1), lambda m: f"an exponent within {m:g} of 1"
    ),
    "inductive-bias": Words(
        "learning from few pictures", "there are few pictures", UNET, times("lowest loss"),
        lambda m: f"{number(math.exp(m))} times the loss",
    ),
    "local-details": Words(
        "fine texture", "fine texture must be right", UNET, ahead("UNet"), lambda m: f"{100 * m:g} points"
    ),
    "global-coherence": Words(
        "parts that fit together", "all parts must fit together", DIT, ahead("DiT"),
        lambda m: f"{100 * m:g} points",
    ),
}  # fmt: skip


def missing(what: str) -> str:
    return f"This figure waits for {what}, which is {MISSING}."


def speak(question: Question) -> Words:
    """The words of a question; one without an entry in WORDS is described by its name."""
    own = Words(question.name, "", "", lambda known: span(known), lambda m: f"{m:g}")
    return WORDS.get(question.name, own)


def effect_words(finding: Finding) -> str:
    """With the 95 % interval; the measurement where there is nothing."""
    if finding.interval is None:
        return f"{MISSING} ({speak(finding.question).needs or finding.question.measurement})"
    return speak(finding.question).effect(finding.interval)


def favoured(finding: Finding) -> str:
    """The network that the verdict lets one recommend, or ""."""
    better = speak(finding.question).better
    if not better or not finding.side:
        return ""
    return better if finding.side > 0 else next(name for name in PAIR if name != better)


def summary(findings: list[Finding], lines: Lines) -> list[str]:
    """Sentences of the first paragraph."""
    said: list[str] = []
    reasons = {n: [speak(f.question).when for f in findings if favoured(f) == n] for n in (UNET, DIT)}
    said += [f"Use the {TITLES[n]} when {listed(whens, 'or')}." for n, whens in reasons.items() if whens]
    if not any(reasons.values()):
        said.append("These runs do not tell yet which of the two to use.")
    even = [speak(f.question).topic for f in findings if f.side == 0 and speak(f.question).better]
    if even:
        said.append(f"There is no difference that matters in {listed(even)}.")
    decided = [finding for finding in findings if finding.verdict != UNDECIDED]
    said += [open_side(f) for f in decided if f.side is None and speak(f.question).better]
    for finding in (f for f in decided if not speak(f.question).better):
        said.append(cost(finding))
        if finding.question.name == "more-scalable":
            said += lower_at_all_budgets(lines) + best_at_the_edge(lines)
    return [*said, *undecided(findings), scope(lines)]


def lower_at_all_budgets(lines: Lines) -> list[str]:
    """Which network is ahead in D2, because an exponent does not tell; [] where that depends on the budget."""
    by_budget = list(zip(*(lowest_losses(lines, name) for name in (UNET, DIT)), strict=True))
    ahead = {UNET if unet < dit else DIT for unet, dit in by_budget}
    if len(ahead) != 1:
        return []
    low, high = map(number, sorted(by_budget[-1]))
    loss = f"the {TITLES[ahead.pop()]} has the lower loss, at the largest {low} against {high}"
    return [f"But at all budgets that were measured {loss}."]


def best_at_the_edge(lines: Lines) -> list[str]:
    """A warning where the widths of D2 do not reach beyond the best one."""
    best = [one for name in PAIR for one in smallest_best(lines, name)]
    if not any(best):
        return []
    sizes = sorted(map(parameters, sized(of(lines, "D2"))))
    widths, cases = f"{sizes[0]:.2f} to {sizes[-1]:.2f} M parameters", f"{sum(best)} of {len(best)} cases"
    return [f"Of the widths ({widths}) the smallest was the best in {cases}, so still smaller ones may be better."]


def scope(lines: Lines) -> str:
    known = {n: sized([*of(lines, "D1", n), *of(lines, "D1-rates", n)]) for n in PAIR}
    if not all(known.values()):
        return "The two networks have not been trained yet."
    shown = " and ".join(f"a {TITLES[n]} of {parameters(found[0]):.2f} M parameters" for n, found in known.items())
    images = max(line["images_seen"] for found in known.values() for line in found)
    data = sorted({pictures(x) for group in ("D1", "D1-rates", "D6") for x in sized(of(lines, group))})
    return (
        f"Unless said otherwise, this is about {shown}, each with its best learning rate and guidance of those "
        f"tried, and {images:,} images of training. They were drawn from {listed(data)}; other sizes and data may "
        "differ."
    )


def pictures(line: Line) -> str:
    names = {"digits": "MNIST digits", "tiles": "synthetic tiles"}
    data = line["recipe"]["data"]
    side = line["recipe"].get("arguments", {}).get("image_size", 32)
    return f"{line['train_images']:,} {names.get(data, f'pictures of {data}')} of {side}x{side} pixels"


def sized(lines: Lines) -> Lines:
    """Those that say how large their network is, which a diverged run does not."""
    return [line for line in lines if "parameters" in line]


def parameters(line: Line) -> float:
    """In millions."""
    return line["parameters"] / 1e6


def listed(parts: list[str], last: str = "and") -> str:
    return f" {last} ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def open_side(finding: Finding) -> str:
    """Decided, but not which network is ahead by more than the margin."""
    words = speak(finding.question)
    if finding.verdict == HOLDS:
        known, unknown = "the UNet is not worse by more than what matters", "better"
    else:
        known, unknown = f"the {TITLES[words.better]} is not ahead by what matters", "behind"
    return f"In {words.topic} {known}; whether it is {unknown} by as much is open."


def cost(finding: Finding) -> str:
    known = finding.interval
    assert known, "decided"
    words, sentence = speak(finding.question), finding.question.sentence
    if not words.topic.startswith("the time of"):
        return f"“{sentence}” {finding.verdict}: {words.effect(known)}."
    grows = "as" if finding.verdict == HOLDS else "faster than" if known.mean > 0 else "more slowly than"
    formula = sentence.partition(": ")[2].partition(" ")[0]
    return f"On this CPU {words.topic} grows {grows} {formula}: {words.effect(known)}."


def undecided(findings: list[Finding]) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for finding in (finding for finding in findings if finding.verdict == UNDECIDED):
        whole = len(finding.effects) == len(finding.question.seeds)
        some = "Measured and undecided" if whole else "Undecided, not all seeds are measured yet"
        kind = some if finding.effects else "Undecided, not measured yet"
        kinds.setdefault(kind, []).append(speak(finding.question).topic)
    return [f"{kind}: {listed(topics)}." for kind, topics in sorted(kinds.items())]


def marks(finding: Finding) -> str:
    """A sign beside the verdict for those who do not see colours."""
    return {HOLDS: "✓", FAILS: "✗", UNDECIDED: "?"}.get(finding.verdict, "=")
