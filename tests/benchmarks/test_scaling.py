"""The fleet simulation, and what is computed from it."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fleet, scaling
from benchmarks.fleet import FLEETS, SIMULATED, Model, Outcome, Replica, capacity, divide
from benchmarks.fleet import simulate as simulate_fleet
from benchmarks.scaling import PLANNED, highest_load, measured, plan, plan_table
from benchmarks.scheduling import arrivals
from service.engine.simulated import StepCost

TOGETHER, APART = PLANNED
TARGET = 0.99


def in_time(name: str, count: int, load: float) -> float:
    return simulate_fleet(SIMULATED, count, load * count * capacity(SIMULATED), 1000, FLEETS[name]).share_in_time


def outcome(share: float) -> Outcome:
    late = round(1000 * (1 - share))
    return Outcome(0, np.ones(1000), np.array([9.0] * late + [1.0] * (1000 - late)), 0.1)


def test_less_busy_replicas_answer_more_in_time_than_random_ones() -> None:
    shares = {name: in_time(name, 4, 0.8) for name in FLEETS if name != APART}
    assert shares["together, least backlog"] > shares["together, random"] + 0.02
    assert shares["together, two choices"] > shares["together, random"] + 0.02


def test_replicas_of_one_model_carry_loads_that_mixed_ones_do_not() -> None:
    assert in_time(TOGETHER, 3, 0.9) < 0.95
    assert in_time(APART, 3, 0.9) > 0.975


def test_every_request_of_the_counted_time_is_counted_once() -> None:
    rate = 2.5 * capacity(SIMULATED)
    for routing in (FLEETS[TOGETHER], FLEETS[APART]):
        seconds = fleet.WARM_SECONDS + 300 / rate + fleet.COOL_SECONDS
        trace = arrivals(rate, seconds, {"dit": 0.5, "unet": 0.5}, seed=0)
        counted = sum(fleet.WARM_SECONDS < now < seconds - fleet.COOL_SECONDS for now, _ in trace)
        seen = simulate_fleet(SIMULATED, 2, rate, 300, routing)
        assert seen.refused > 0
        assert len(seen.latencies) + seen.refused == counted


def test_a_faster_device_needs_fewer_replicas_and_each_model_has_its_own_row_cap() -> None:
    twice = {name: Model(StepCost(m.cost.t0_ms / 2, m.cost.t1_ms / 2), m.rows) for name, m in SIMULATED.items()}
    assert capacity(twice) == pytest.approx(2 * capacity(SIMULATED))
    one = {"dit": Model(StepCost(2, 0.02), 32)}  # steps of 23 on average, half of them of two rows
    assert capacity(one) == pytest.approx(32 / 0.00264 / (np.mean([5, 10, 20, 30, 50]) * 1.5))
    caps = Replica({"dit": Model(StepCost(2, 0.02), 24), "unet": Model(StepCost(4, 0.05), 8)})._core.shares
    assert {name: share.scheduler.max_rows for name, share in caps.items()} == {"dit": 24, "unet": 8}


def test_replicas_are_divided_by_work() -> None:
    for count in (2, 3, 16, 100):
        parts = divide(SIMULATED, count)
        assert sum(parts.values()) == count
        assert min(parts.values()) >= 1
    work = {name: model.cost.seconds(model.rows) for name, model in SIMULATED.items()}
    assert parts["dit"] / 100 == pytest.approx(work["dit"] / sum(work.values()), abs=0.02)


def test_the_highest_load_meets_its_target() -> None:
    assert highest_load({0.4: outcome(1.0), 0.6: outcome(0.98), 0.8: outcome(0.5)}, TARGET) == pytest.approx(0.5)
    assert highest_load({0.4: outcome(1.0), 0.6: outcome(0.995)}, TARGET) == 0.6
    routing = FLEETS[TOGETHER]
    curve = scaling.curve(SIMULATED, 2, routing, 800, (0.4, 0.55, 0.7, 1.3, 2.0))
    load = highest_load(curve, TARGET)
    assert 0.4 < load < 0.7
    assert in_time(TOGETHER, 2, 0.9 * load) >= TARGET
    assert highest_load(curve, 0.9) > load
    assert max(curve) < 2  # it stops where too many are late


def test_more_requests_need_more_replicas_and_all_plans_meet_the_target() -> None:
    plans = [plan(SIMULATED, rate, TOGETHER, 0.9, TARGET, 400) for rate in (10, 300, 600)]
    assert plans[0].replicas == plans[0].spare == 1
    for few, more in pairwise(plans):
        assert more.replicas > few.replicas
    for made in plans:
        assert made.outcome.share_in_time >= TARGET
        assert made.rate / made.replicas < 0.9 * capacity(SIMULATED)  # 0.9 was too much to ask for
    assert plan(SIMULATED, 10, APART, 0.9, TARGET, 300).replicas == len(SIMULATED)


def test_costs_follow_the_price() -> None:
    made = scaling.Plan(100.0, TOGETHER, 3, 1, outcome(1.0))
    cheap, dear = (plan_table([made], SIMULATED, price, 2000.0) for price in (0.5, 2.0))
    assert "| 2.00 | 5.56 | 0.20 |" in cheap  # 4 devices; an hour is 0.36 million requests; 100 times 2 kB
    assert "| 8.00 | 22.22 | 0.20 |" in dear
    assert made.open_requests == pytest.approx(100 / 3)  # for a second each


def test_step_times_of_a_service_become_a_line() -> None:
    steps = {str(rows): (3 + 0.5 * rows) / 1000 for rows in (1, 2, 4, 8)} | {"16": 9.0}
    (model,) = measured({"dit": {"max_rows": 8, "step_seconds": steps}}).values()
    assert (model.cost.t0_ms, model.cost.t1_ms) == pytest.approx((3, 0.5))
    assert model.rows == 8


def test_the_report_and_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    info, picture = tmp_path / "info.json", tmp_path / "plot.png"
    profile = {"max_rows": 8, "step_seconds": {"1": 0.02, "8": 0.04}}
    info.write_text(json.dumps({"profiles": {"only": profile}}))
    monkeypatch.setattr(scaling, "COUNTS", (1, 2))
    monkeypatch.setattr(scaling, "LOADS", (0.5, 0.9))
    arguments = ["scaling", "--info", str(info), "--requests", "200", "--rates", "1", "30", "--target", "0.9"]
    monkeypatch.setattr("sys.argv", [*arguments, "--plot", str(picture)])
    scaling.main()
    printed = capsys.readouterr().out
    assert "only: a step of R rows, 8 at most" in printed
    assert printed.count("\n| 30 |") == len(PLANNED)
    assert printed.count("\n| 2 |") == len(fleet.FLEETS)
    assert picture.stat().st_size > 5_000


@pytest.mark.parametrize("wrong", [["--target", "1"], ["--rates", "10", "0"]])
def test_what_no_fleet_can_meet_is_refused(
    wrong: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["scaling", *wrong])
    with pytest.raises(SystemExit):
        scaling.main()
    assert "--target must lie between 0 and 1" in capsys.readouterr().err
