"""Confidence intervals against scipy and published values."""

import math
from dataclasses import astuple
from statistics import fmean, stdev

import pytest
import scipy.stats
import torch

from training.intervals import (
    Figure,
    class_groups,
    difference,
    exponential,
    jackknifed,
    mean_of,
    share_of,
    wider,
    within,
)


def test_the_jackknife_of_a_mean_is_the_interval_of_the_mean() -> None:
    values = [1.0, 4.0, 2.0, 8.0, 5.0]
    without = [fmean(values[:i] + values[i + 1 :]) for i in range(5)]
    low, high = scipy.stats.t.interval(0.95, 4, fmean(values), stdev(values) / math.sqrt(5))
    for figure in (jackknifed(fmean(values), without, [4.0]), mean_of(values)):
        assert astuple(figure) == pytest.approx((4.0, low, high, None))


def test_judges_that_disagree_widen_the_interval() -> None:
    """Welch: variances 1 of 4 degrees of freedom and 3 of 2 give 16 / (1 / 4 + 9 / 2)."""
    without = [4 + math.sqrt(5) / 4 * (v - 4) for v in (3, 3, 4, 5, 5)]  # whose jackknife variance is 1
    judges = [1.0, 4.0, 7.0]  # variance of the mean: 3
    half = scipy.stats.t.ppf(0.975, 16 / (1 / 4 + 9 / 2)) * 2
    assert astuple(jackknifed(4.0, without, judges, 7.0)) == pytest.approx((4.0, 4 - half, 4 + half, 7.0))


def test_nothing_that_varies_leaves_no_width() -> None:
    assert jackknifed(1.0, [1.0] * 10, [1.0] * 3) == Figure(1.0, 1.0, 1.0)


@pytest.mark.parametrize(("right", "count"), [(0, 20), (20, 20), (81, 263), (485, 500)])
def test_a_share_has_wilsons_interval(right: int, count: int) -> None:
    known = scipy.stats.binomtest(right, count).proportion_ci(method="wilson")
    found = share_of(right / count, count)
    assert (found.low, found.high) == (pytest.approx(known.low, abs=1e-6), pytest.approx(known.high, abs=1e-6))


def test_the_difference_of_two_shares() -> None:
    """Newcombe 1998, table II, method 10, case (a): 56/70 - 48/80 lies in 0.0524 to 0.3339."""
    found = difference(share_of(56 / 70, 70), share_of(48 / 80, 80))
    assert [found.value, found.low, found.high] == pytest.approx([0.2, 0.0524, 0.3339], abs=5e-5)


def test_intervals_are_joined_cut_and_raised() -> None:
    figure = Figure(0.9, 0.8, 1.1, 0.95)
    assert wider(figure, Figure(0.9, 0.7, 1.0)) == Figure(0.9, 0.7, 1.1, 0.95)
    assert within(figure, 0, 1) == Figure(0.9, 0.8, 1.0, 0.95)
    assert exponential(Figure(0.0, -1.0, 1.0)) == Figure(1.0, math.exp(-1), math.e)


def test_groups_share_out_every_class() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 1, 1])
    groups = class_groups(labels, 2)
    assert [labels[groups == g].bincount().tolist() for g in range(2)] == [[2, 3], [2, 3]]
