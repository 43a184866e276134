"""Verdicts against scipy and cases whose answer is known by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from training.comparison.verdicts import (
    FAILS,
    HOLDS,
    NO_DIFFERENCE,
    UNDECIDED,
    Question,
    holm,
    interval,
    judge,
    p_value,
    read_questions,
)

QUESTIONS = Path(__file__).resolve().parents[2] / "docs/comparison/questions.toml"


def question(kind: str, name: str = "q", margin: float = 0.2) -> Question:
    return Question(name, "A sentence", "D1", "m", "e", kind, margin, (1, 2, 3, 4, 5), ())


def around(mean: float, spread: float = 0.01) -> dict[int, float]:
    return {seed: mean + spread * (seed - 3) for seed in range(1, 6)}


def test_the_committed_questions_are_read() -> None:
    questions = read_questions(QUESTIONS)
    assert len(questions) == 9
    assert questions[0].seeds == (1, 2, 3, 4, 5)
    assert questions[6].beside[0] == "the same for 100, 1,000 and 3,000 pictures"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'kind = "better"',
            'kind = "worse"',
            "question faster-to-train: kind must be one of better, not-worse, equal",
        ),
        ("margin = 0.32", "margin = 0.0", "question faster-to-train: margin must be positive and finite, got 0.0"),
        ("looks = 2", "looks = 0", "question faster-to-train: looks must be a whole number from 1, got 0"),
        (
            "seeds = [1, 2, 3, 4, 5]",
            "seeds = 5",
            "question faster-to-train: seeds must be 3 or more different whole",
        ),
        ("seeds = [1, 2, 3, 4, 5]", "seeds = [1, 1, 2]", "question faster-to-train: seeds must be 3 or more"),
        ("margin = 0.32", "bound = 0.32", "question faster-to-train: its fields must be"),
        (
            'name = "strong-baseline"',
            'name = "faster-to-train"',
            "more than one question is called faster-to-train",
        ),
    ],
)
def test_a_question_that_cannot_be_read_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "questions.toml"
    path.write_text(QUESTIONS.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_questions(path)


def test_intervals_and_tests_are_those_of_scipy() -> None:
    values = np.random.default_rng(0).normal(0.3, 0.2, 5).tolist()
    found, (_, theirs) = interval(values), stats.ttest_1samp(values, 0.1)
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), 5)
    assert p_value(values, 0.1) == pytest.approx(theirs)


def test_one_replicate_has_no_interval() -> None:
    assert interval([2.0]).low is None


def test_equal_replicates_leave_no_doubt() -> None:
    assert (p_value([0.5] * 3, 0.5), p_value([0.5] * 3, 0.4)) == (1, 0)


def test_holm_by_hand() -> None:
    levels, adjusted = zip(*holm([0.01, 0.04, 0.03, 1.0]), strict=True)
    assert levels == pytest.approx((0.05 / 4, 0.05 / 2, 0.05 / 3, 0.05))
    assert adjusted == pytest.approx((0.04, 0.09, 0.09, 1.0))  # 0.04 x 2 is below 0.03 x 3, and never falls


def test_holm_stops_at_the_first_that_is_not_rejected() -> None:
    assert holm([0.03, 0.03])[1][1] == pytest.approx(0.06)  # 0.03 <= 0.05 / 1, but the first one was not rejected


@pytest.mark.parametrize(
    ("kind", "mean", "spread", "verdict", "side"),
    [
        ("better", 0.4, 0.01, HOLDS, 1),
        ("better", 0.0, 0.01, NO_DIFFERENCE, 0),
        ("better", -0.4, 0.01, FAILS, -1),
        ("better", -0.2, 0.01, FAILS, None),  # below the margin for sure, but not above minus the margin
        ("better", 0.25, 0.1, UNDECIDED, None),
        ("not-worse", 0.4, 0.01, HOLDS, 1),
        ("not-worse", 0.0, 0.01, HOLDS, 0),
        ("not-worse", 0.2, 0.01, HOLDS, None),
        ("not-worse", -0.4, 0.01, FAILS, -1),
        ("not-worse", -0.2, 0.01, UNDECIDED, None),
        ("equal", 0.1, 0.01, HOLDS, 0),
        ("equal", -0.1, 0.01, HOLDS, 0),
        ("equal", 0.3, 0.01, FAILS, 1),
        ("equal", -0.3, 0.01, FAILS, -1),
        ("equal", 0.19, 0.1, UNDECIDED, None),
    ],
)
def test_each_verdict_of_each_kind(kind: str, mean: float, spread: float, verdict: str, side: int | None) -> None:
    (found,) = judge([question(kind)], {"q": around(mean, spread)})
    assert (found.verdict, found.side) == (verdict, side)
    assert found.interval is not None
    assert found.interval.mean == pytest.approx(mean)


def test_two_replicates_decide_nothing() -> None:
    (found,) = judge([question("better")], {"q": {1: 1.0, 2: 1.001}})
    assert (found.verdict, found.adjusted, len(found.effects)) == (UNDECIDED, 1, 2)


def test_a_second_look_costs_half_of_the_level() -> None:
    once, twice = question("better"), replace(question("better"), looks=2)
    (one,), (two,) = (judge([asked], {"q": around(0.22)}) for asked in (once, twice))
    assert two.adjusted == pytest.approx(2 * one.adjusted)
    assert (one.verdict, two.verdict) == ("holds", "undecided")


def test_only_declared_seeds_count() -> None:
    (found,) = judge([question("better")], {"q": around(0.4) | {0: -9.0, 6: -9.0}})
    assert (found.verdict, sorted(found.effects)) == (HOLDS, [1, 2, 3, 4, 5])


def test_sentences_without_a_measurement_make_the_others_harder() -> None:
    """p = 0.02 suffices alone, and not beside two sentences that were not measured."""
    values = around(0.2 + stats.t.isf(0.01, 4) * 0.1 * 2.5**0.5 / 5**0.5, 0.1)
    assert p_value(list(values.values()), 0.2) == pytest.approx(0.02)
    alone = judge([question("better")], {"q": values})[0]
    many = judge([question("better"), question("better", "r"), question("equal", "s")], {"q": values})
    assert (alone.verdict, many[0].verdict) == (HOLDS, UNDECIDED)
    assert [found.interval for found in many[1:]] == [None, None]
    assert many[0].adjusted == pytest.approx(0.06)


def test_no_difference_is_tested_at_the_level_that_holm_left() -> None:
    """Far below the margin, and above minus the margin at 5 % alone, but not at the level beside two others."""
    values = around(-0.2 + stats.t.isf(0.015, 4) * 0.05 * 2.5**0.5 / 5**0.5, 0.05)
    others = [question("better", "r"), question("better", "s")]
    assert judge([question("better")], {"q": values})[0].verdict == NO_DIFFERENCE
    assert judge([question("better"), *others], {"q": values})[0].verdict == FAILS
