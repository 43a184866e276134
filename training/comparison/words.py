"""Findings in plain words, and the paragraph for a reader in a hurry; never stronger than the verdicts."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from training.comparison.selection import DIT, PAIR, TITLES, UNET, Line, Lines, of
from training.comparison.verdicts import FAILS, HOLDS, UNDECIDED, Finding, Interval, Question

NOT_MEASURED = "not measured yet"


def number(value: float, digits: int = 3) -> str:
    """Rounded to so many significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    return f"{100 * share:+.1f} points"


def span(known: Interval, show: Callable[[float], str] = number) -> str:
    """The mean and its interval, whose ends a falling `show` may swap."""
    if known.low is None or known.high is None:
        return f"{show(known.mean)} (one seed, so no interval)"
    return f"{show(known.mean)} ({show(known.low)} to {show(known.high)})"


def mirrored(known: Interval) -> Interval:
    low, high = (None if end is None else -end for end in (known.high, known.low))
    return Interval(-known.mean, low, high, known.n)


def faster(known: Interval) -> str:
    name, known = ("UNet", known) if known.mean >= 0 else ("DiT", mirrored(known))
    return f"the {name} is {span(known, lambda x: number(2**x))} times as fast to the loss that the other ends with"


def times(what: str) -> Callable[[Interval], str]:
    return lambda known: f"the DiT's {what} is {span(known, lambda x: number(math.exp(x)))} times the UNet's"


def ahead(name: str) -> Callable[[Interval], str]:
    return lambda known: f"the {name}'s share less the other's: {span(known, points)}"


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


WORDS: dict[str, Words] = {
    "faster-to-train": Words(
        "the time to train", "the time to train counts", UNET, faster, lambda m: f"{number(2**m)} times as fast"
    ),
    "strong-baseline": Words(
        "likeness to real pictures", "samples shall be distributed like real pictures", UNET, times("Frechet ratio"),
        lambda m: f"the UNet's ratio at most {number(math.exp(m))} times the DiT's",
    ),
    "more-scalable": Words(
        "the gain by more compute", "much more compute is at hand", DIT,
        lambda known: f"the DiT's exponent less the UNet's: {span(known, lambda x: f'{x:+.3f}')}",
        lambda m: f"an exponent larger by {m:g}",
    ),
    "long-range": Words(
        "parts far apart", "parts that lie far apart must match", DIT, ahead("DiT"), lambda m: f"{100 * m:g} points"
    ),
    "quadratic-attention": Words(
        "the growth of attention", "", "", power(2), lambda m: f"an exponent within {m:g} of 2"
    ),
    "linear-convolutions": Words(
        "the growth of convolutions", "", "", power(1), lambda m: f"an exponent within {m:g} of 1"
    ),
    "inductive-bias": Words(
        "few pictures", "there are only some hundred pictures", UNET, times("lowest loss"),
        lambda m: f"{number(math.exp(m))} times the loss",
    ),
    "local-details": Words(
        "fine texture", "fine texture must be right", UNET, ahead("UNet"), lambda m: f"{100 * m:g} points"
    ),
    "global-coherence": Words(
        "parts that fit together", "all parts of a picture must fit together", DIT, ahead("DiT"),
        lambda m: f"{100 * m:g} points",
    ),
}  # fmt: skip


def speak(question: Question) -> Words:
    """A question that is new here is spoken of in its own words."""
    own = Words(question.name, "", "", lambda known: span(known), lambda m: f"{m:g}")
    return WORDS.get(question.name, own)


def effect_words(finding: Finding) -> str:
    """With the 95 % interval; the measurement where there is nothing."""
    if finding.interval is None:
        return f"{NOT_MEASURED} ({finding.question.measurement})"
    return speak(finding.question).effect(finding.interval)


def favoured(finding: Finding) -> str:
    """The network that the verdict lets one recommend, or ""."""
    better = speak(finding.question).better
    if not better or not finding.side:
        return ""
    return better if finding.side > 0 else next(name for name in PAIR if name != better)


def summary(findings: list[Finding], lines: Lines) -> list[str]:
    """Sentences of the first paragraph."""
    said = [scope(lines)]
    for network in (UNET, DIT):
        if reasons := [speak(f.question).when for f in findings if favoured(f) == network]:
            said.append(f"Use the {TITLES[network]} when {listed(reasons, 'or')}.")
    if not any(favoured(finding) for finding in findings):
        said.append("These runs do not tell yet which of the two to use.")
    even = [speak(f.question).topic for f in findings if f.side == 0 and speak(f.question).better]
    if even:
        said.append(f"There is no difference that matters in {listed(even)}.")
    said += [open_side(f) for f in findings if f.verdict != UNDECIDED and f.side is None]
    said += [cost(f) for f in findings if f.verdict != UNDECIDED and not speak(f.question).better]
    said += undecided(findings)
    said.append("This is about these two networks, this recipe, these data and budgets.")
    return said


def scope(lines: Lines) -> str:
    sizes = {name: of(lines, "D1", name) or of(lines, "D1-rates", name) for name in PAIR}
    if not all(sizes.values()):
        return "The two networks have not been trained yet."
    shown = " and ".join(f"a {TITLES[n]} of {millions(found[0])} parameters" for n, found in sizes.items())
    first = sizes[DIT][0]
    images = max(x["images_seen"] for found in sizes.values() for x in found)
    return f"Here {shown} learn from {first['train_images']:,} digits, and see {images:,} of them in training."


def millions(line: Line) -> str:
    return f"{line['parameters'] / 1e6:.2f} M"


def listed(parts: list[str], last: str = "and") -> str:
    return f" {last} ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def open_side(finding: Finding) -> str:
    """Decided, but not which network is ahead by more than the margin."""
    words = speak(finding.question)
    if finding.verdict == HOLDS:
        return f"In {words.topic} the UNet is not worse by more than the margin; whether it is better is open."
    return f"In {words.topic} the table is not right, and it is open whether the other network is better."


def cost(finding: Finding) -> str:
    known = finding.interval
    assert known, "decided"
    grows = speak(finding.question).topic.removeprefix("the growth of ")
    names = "" if finding.verdict == HOLDS else "not "
    return f"The table is {names}right about {grows}: {speak(finding.question).effect(known)}."


def undecided(findings: list[Finding]) -> list[str]:
    left = [finding for finding in findings if finding.verdict == UNDECIDED]
    tried = [speak(f.question).topic for f in left if f.interval]
    missing = [speak(f.question).topic for f in left if not f.interval]
    said = [f"Measured and still undecided: {listed(tried)}."] if tried else []
    return said + ([f"Undecided because not measured yet: {listed(missing)}."] if missing else [])


def networks(lines: Lines, measurement: str) -> str:
    """Parameters, FLOP and budget of both networks, as they stand beside a verdict."""
    return "; ".join(network_facts(lines, measurement, name) for name in PAIR)


def network_facts(lines: Lines, measurement: str, name: str) -> str:
    trained = [x for x in of(lines, measurement, name) if "parameters" in x]
    known = trained or [x for x in [*of(lines, "D1", name), *of(lines, "D1-rates", name)] if "parameters" in x]
    if not known:
        return f"{TITLES[name]}: {NOT_MEASURED}"
    last = max(known, key=lambda x: x["images_seen"])
    facts = f"{TITLES[name]}: {millions(last)} parameters, {last['flop_per_row'] / 1e6:.0f} MFLOP a row"
    if not trained:
        return facts
    return facts + f", {last['images_seen']:,} images, {last['train_flop'] / 1e12:.0f} TFLOP of training"


def marks(finding: Finding) -> str:
    """A sign beside the verdict for those who do not see colours."""
    return {HOLDS: "✓", FAILS: "✗", UNDECIDED: "?"}.get(finding.verdict, "=")
