"""Whether the sentences of docs/comparison/questions.toml hold. Its head defines all that is computed here."""

import math
import statistics
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ALPHA = 0.05  # of Holm over all sentences, and of the 95 % intervals
REPLICATES = 3  # the fewest that a question may declare
KINDS = ("better", "not-worse", "equal")
HOLDS, NO_DIFFERENCE, FAILS, UNDECIDED = "holds", "no difference that matters", "does not hold", "undecided"


@dataclass(frozen=True)
class Question:
    """One sentence, and what decides it."""

    name: str
    sentence: str
    measurement: str
    metric: str
    effect: str
    kind: str
    margin: float
    seeds: tuple[int, ...]
    beside: tuple[str, ...]
    looks: int = 1  # number of interim and final tests; p is multiplied by it (Bonferroni)


@dataclass(frozen=True)
class Interval:
    """A mean over replicates with Student's 95 % interval, which one replicate does not have."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Finding:
    """A question with its effects and its verdict.

    side: where the effect lies by tests at the level that Holm left: 1 above the margin, -1 below minus the margin,
    0 between them, None where that is open.
    """

    question: Question
    effects: dict[int, float]  # by seed
    interval: Interval | None  # None without effects
    adjusted: float  # p by Holm, to be compared with ALPHA
    verdict: str
    side: int | None


def read_questions(path: Path) -> list[Question]:
    """In their order.

    Raises:
        ValueError: a question that cannot be read; the message names it and the field.
    """
    questions = [read_question(row, path) for row in tomllib.loads(path.read_text("utf-8")).get("question", [])]
    names = [question.name for question in questions]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: more than one question is called {', '.join(twice)}")
    return questions


def read_question(row: dict, path: Path) -> Question:
    known, where = (
        {field.name for field in fields(Question)},
        f"{path}: question {row.get('name', 'without a name')}",
    )
    if row.keys() | {"looks"} != known:
        raise ValueError(f"{where}: its fields must be {', '.join(sorted(known))}, got {', '.join(sorted(row))}")
    if row["kind"] not in KINDS:
        raise ValueError(f"{where}: kind must be one of {', '.join(KINDS)}, got {row['kind']!r}")
    if not isinstance(row["margin"], (int, float)) or not 0 < row["margin"] < math.inf:
        raise ValueError(f"{where}: margin must be positive and finite, got {row['margin']!r}")
    seeds = row["seeds"]
    whole = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    if not whole or not REPLICATES <= len(set(seeds)) == len(seeds):
        raise ValueError(f"{where}: seeds must be {REPLICATES} or more different whole numbers, got {seeds!r}")
    if type(row.get("looks", 1)) is not int or row.get("looks", 1) < 1:
        raise ValueError(f"{where}: looks must be a whole number from 1, got {row['looks']!r}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return Question(**values)


def interval(values: list[float]) -> Interval:
    """Of at least one value."""
    from scipy import stats

    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Interval(mean, None, None, 1)
    half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * statistics.stdev(values) / n**0.5
    return Interval(mean, mean - half, mean + half, n)


def p_value(values: list[float], bound: float) -> float:
    """p of Student's two-sided test that the mean is `bound`; with equal replicates 1 if they are it, else 0."""
    from scipy import stats

    if statistics.stdev(values) == 0:
        return float(values[0] == bound)
    t = (statistics.fmean(values) - bound) / (statistics.stdev(values) / len(values) ** 0.5)
    return 2 * float(stats.t.sf(abs(t), len(values) - 1))


def bound_of(question: Question, mean: float) -> float:
    """The bound that the effect is tested against; for kind equal the nearer one of -margin and margin."""
    if question.kind == "equal":
        return math.copysign(question.margin, mean)
    return question.margin if question.kind == "better" else -question.margin


def holm(values: list[float]) -> list[tuple[float, float]]:
    """For each p: the level that it is compared with, and p adjusted, which is compared with ALPHA."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    found, adjusted = [(0.0, 1.0)] * len(values), 0.0
    for rank, i in enumerate(order):
        left = len(values) - rank
        adjusted = max(adjusted, min(1.0, left * values[i]))
        found[i] = ALPHA / left, adjusted
    return found


def judge(questions: list[Question], effects: dict[str, dict[int, float]]) -> list[Finding]:
    """effects: by the name of the question, then by seed; only the declared seeds count."""
    counted = [{s: effects.get(q.name, {})[s] for s in q.seeds if s in effects.get(q.name, {})} for q in questions]
    return [
        find(question, mine, level, adjusted)
        for question, mine, (level, adjusted) in zip(
            questions, counted, holm([p_of(q, list(c.values())) for q, c in zip(questions, counted, strict=True)]),
            strict=True,
        )
    ]  # fmt: skip


def p_of(question: Question, values: list[float]) -> float:
    """p of the declared test; 1 until all declared seeds are measured, because repeated tests err more often."""
    if len(values) < len(question.seeds):
        return 1.0
    return min(1.0, question.looks * p_value(values, bound_of(question, statistics.fmean(values))))


def find(question: Question, effects: dict[int, float], level: float, adjusted: float) -> Finding:
    values = list(effects.values())
    known = interval(values) if values else None
    if not known or adjusted > ALPHA:
        return Finding(question, effects, known, adjusted, UNDECIDED, None)
    side, mean, margin = side_of(values, question.margin, level / question.looks), known.mean, question.margin
    holds = abs(mean) < margin if question.kind == "equal" else mean > bound_of(question, mean)
    if holds:
        return Finding(question, effects, known, adjusted, HOLDS, side)
    verdict = NO_DIFFERENCE if question.kind == "better" and side == 0 else FAILS
    return Finding(question, effects, known, adjusted, verdict, side)


def side_of(values: list[float], margin: float, level: float) -> int | None:
    """See Finding; both bounds are tested at the level of the sentence, which one of them has reached already."""
    mean = statistics.fmean(values)
    below, above = (p_value(values, bound) <= level for bound in (-margin, margin))
    if mean > margin:
        return 1 if above else None
    if mean < -margin:
        return -1 if below else None
    return 0 if below and above else None
