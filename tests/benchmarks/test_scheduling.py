"""The scheduling simulation: what it says of the policy that serves."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import scheduling
from benchmarks.scheduling import Outcome, alternate, arrivals, capacity, compare, simulate
from service.engine.policy import pick
from service.engine.request import TARGET_FACTOR

SLACK, REFUSING = "least relative slack", "least relative slack, refusing"
ROWS = 32


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, float], Outcome]:
    return compare([0.7, 1.5], seconds=5, rows=ROWS)


def share_in_time(outcome: Outcome) -> float:
    return outcome.in_time / outcome.arrived


def test_at_70_percent_load_four_of_five_are_in_time(outcomes: dict[tuple[str, float], Outcome]) -> None:
    for policy in (SLACK, REFUSING):
        assert share_in_time(outcomes[policy, 0.7]) >= 0.8
    for policy in ("alternate", "equal device time"):
        assert share_in_time(outcomes[policy, 0.7]) < share_in_time(outcomes[SLACK, 0.7]) - 0.15


def test_overload_takes_little_of_the_goodput_when_some_are_refused(
    outcomes: dict[tuple[str, float], Outcome],
) -> None:
    goodput = {load: outcome.goodput for (name, load), outcome in outcomes.items() if name == REFUSING}
    assert goodput[1.5] > 0.85 * goodput[0.7]
    assert outcomes[SLACK, 1.5].goodput < 0.3 * goodput[1.5]  # without refusals nearly everybody is late


def test_goodput_stays_at_its_peak_once_the_burst_is_over() -> None:
    shares = {"dit": 0.5, "unet": 0.5}
    rate = capacity(ROWS, shares)
    long = {load: simulate(arrivals(load * rate, 15, shares, 0), 15, pick, True, ROWS) for load in (1.0, 1.5, 3.0)}
    best = max(outcome.goodput for outcome in long.values())
    assert all(outcome.goodput > 0.85 * best for outcome in long.values())


def test_latencies_are_foretold(outcomes: dict[tuple[str, float], Outcome]) -> None:
    errors = abs(outcomes[REFUSING, 0.7].prediction_errors)
    assert np.median(errors) < 0.15
    assert np.mean(errors <= 0.2) > 0.65


def test_refusals_are_rare_below_the_capacity(outcomes: dict[tuple[str, float], Outcome]) -> None:
    calm = outcomes[REFUSING, 0.7]
    assert calm.refused / calm.arrived < 0.12
    assert outcomes[SLACK, 1.5].refused == 0


@pytest.mark.parametrize("shed_load", [False, True])
@pytest.mark.parametrize("saturated", ["dit", "unet"])
def test_a_saturated_model_does_not_hurt_the_other(saturated: str, shed_load: bool) -> None:
    """One gets three times what the whole device can do, the other a tenth; their weights are equal."""
    quiet = "unet" if saturated == "dit" else "dit"
    flood = arrivals(3 * capacity(ROWS, {saturated: 1.0}), 3, {saturated: 1.0}, seed=1)
    drops = arrivals(0.1 * capacity(ROWS, {quiet: 1.0}), 3, {quiet: 1.0}, seed=2)
    for _, request in drops:
        request.request_id += " quiet"
    trace = sorted(flood + drops, key=lambda pair: pair[0])
    outcome = simulate(trace, 3, pick, shed_load, ROWS)
    assert np.quantile(outcome.slowdowns[quiet], 0.9) <= TARGET_FACTOR


def test_every_request_that_was_not_refused_is_answered() -> None:
    shares = {"dit": 0.5, "unet": 0.5}
    trace = arrivals(0.5 * capacity(ROWS, shares), 2, shares, seed=3)
    outcome = simulate(trace, 2, alternate(), False, ROWS)
    assert len(outcome.all) == outcome.arrived == len(trace)


def test_the_report_and_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "plot.png"
    arguments = ["scheduling", "--seconds", "0.5", "--loads", "0.3", "0.6", "--plot", str(picture)]
    monkeypatch.setattr("sys.argv", arguments)
    scheduling.main()
    printed = capsys.readouterr().out
    assert printed.count("| 30% |") == printed.count("| 60% |") == len(scheduling.POLICIES)
    assert picture.stat().st_size > 5_000
    assert printed.isascii()
