"""Which model goes next, on a clock that the test moves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.order import ORDER_SECONDS
from service.engine.policy import AT_RISK, MAX_LAG, DeviceShare, pick
from service.engine.request import TARGET_FACTOR, Request
from service.engine.scheduler import Scheduler
from tests.service.engine.rows import UNBOUNDED, make_request, run_step

LATE = 1e9  # whatever came before is late now
ROUNDING = 1e-6  # seconds; virtual times are sums of floats


def make_share(weight: float = 1.0) -> DeviceShare:
    return DeviceShare(Scheduler(2, UNBOUNDED, UNBOUNDED), weight)


def make_timed(num_steps: int, idle_seconds: float) -> Request:
    request = make_request(*[1] * num_steps)
    request.idle_seconds = idle_seconds
    return request


def add(share: DeviceShare, num_steps: int, arrived: float = 0.0, seconds_per_step: float = 1.0) -> None:
    share.scheduler.add(make_timed(num_steps, num_steps * seconds_per_step), arrived)


def run(share: DeviceShare, cost: float, now: float = 0.0) -> None:
    """One step, charged as EngineCore charges it."""
    run_step(share.scheduler, now=now)
    share.virtual_time += cost / share.weight


def clear(share: DeviceShare) -> None:
    for request_id in list(share.scheduler.requests):
        share.scheduler.abort(request_id, 0.0)


def test_no_model_runs_without_work() -> None:
    assert pick({}, now=0.0) is None
    assert pick({"a": make_share(), "b": make_share()}, now=0.0) is None


def test_the_only_model_with_work_runs_whatever_it_has_used() -> None:
    shares = {"a": make_share(), "b": make_share()}
    add(shares["a"], 1)
    shares["a"].virtual_time = 1e6
    assert pick(shares, now=0.0) == "a"


def test_a_share_follows_the_latest_step_times() -> None:
    share = DeviceShare(Scheduler(2, UNBOUNDED, UNBOUNDED), measured_seconds=lambda rows: 0.001 * rows)
    assert share.step_seconds(2) == 0.002
    for _ in range(200):
        share.learn_step(2, 0.006)  # the host takes two thirds of it
    assert share.step_seconds(1) == pytest.approx(0.003, rel=0.05)
    for _ in range(200):
        share.learn_step(1, 0.001)
    assert share.step_seconds(1) == pytest.approx(0.001, rel=0.05)


def test_a_pause_of_the_host_hardly_counts_as_a_slow_step() -> None:
    share = DeviceShare(Scheduler(2, UNBOUNDED, UNBOUNDED), measured_seconds=lambda rows: 0.0001)
    share.learn_step(1, 1.0)
    assert share.slowdown < 1.5


def test_a_step_without_a_measured_time_changes_no_estimate() -> None:
    share = make_share()
    share.learn_step(1, 1.0)
    assert share.slowdown == 1.0


def test_slack_is_counted_in_idle_latencies() -> None:
    request = make_timed(num_steps=10, idle_seconds=10.0)
    assert request.slack(now=0.0) == TARGET_FACTOR - 1  # at arrival, whatever the size
    assert request.slack(now=20.5) < 0  # too late
    request.arrived, request.tasks[0].step = 100.0, 6
    # the target is at 130: at 112 there are 18 s left, of which 4 of the 10 steps need 4
    assert request.slack(now=112.0) == pytest.approx(1.4)


def test_slack_of_a_request_that_costs_nothing_is_a_number() -> None:
    assert make_timed(num_steps=1, idle_seconds=0.0).slack(now=1.0) < 0


def test_slack_is_looked_up_again_after_two_ms() -> None:
    """The slack of now and that of a later time are each looked up by itself."""
    share = make_share()
    add(share, 10)
    assert share.relative_slack(0.0) == share.relative_slack(ORDER_SECONDS / 2) == 2.0
    assert share.relative_slack(0.0, ahead=10.0) == 1.0
    assert share.relative_slack(10.0) == 1.0


@pytest.mark.parametrize("urgent", ["short", "long"])
def test_least_relative_slack_goes_first(urgent: str) -> None:
    """Both wait since 0: the short one is soon nearer to its target, unless the long one came far earlier."""
    shares = {"long": make_share(), "short": make_share()}
    add(shares["long"], 100, arrived=0.0 if urgent == "short" else -1000.0)
    add(shares["short"], 2)
    assert pick(shares, now=1.0) == urgent


def test_a_model_is_as_urgent_as_its_most_urgent_request() -> None:
    shares = {"a": make_share(), "b": make_share()}
    add(shares["b"], 50)
    add(shares["a"], 100)
    add(shares["a"], 2)
    assert pick(shares, now=1.0) == "a"


def test_a_fast_model_is_urgent_sooner() -> None:
    """Both take the same steps since the same moment; a second is more of the fast model's own latency."""
    shares = {"slow": make_share(), "fast": make_share()}
    add(shares["slow"], 10, seconds_per_step=4.0)
    add(shares["fast"], 10, seconds_per_step=1.0)
    assert pick(shares, now=1.0) == "fast"


def test_a_deadline_is_the_target_where_there_is_one() -> None:
    request = make_timed(num_steps=10, idle_seconds=10.0)
    request.deadline_seconds = 15.0
    assert request.slack(now=2.0) == pytest.approx((15.0 - 2.0 - 10.0) / 10.0)
    request.deadline_seconds = 1000.0  # it can wait longer than others, too
    assert request.slack(now=2.0) > TARGET_FACTOR


def test_late_requests_do_not_make_others_late() -> None:
    """The hopeless one would have the least slack for ever."""
    shares = {"hopeless": make_share(), "soon": make_share()}
    add(shares["hopeless"], 10, arrived=-1e6)
    add(shares["soon"], 10)
    at_its_limit = 20.0  # of the 30 s that the target gives 10 steps of 1 s
    for second in range(10):
        name = pick(shares, now=at_its_limit + second)
        assert name is not None
        run(shares[name], 1.0)
    assert shares["soon"].virtual_time == pytest.approx(5.0, abs=1.0)  # they share: neither has slack


def test_a_model_that_is_behind_its_share_goes_first_once_it_is_at_risk() -> None:
    shares = {"greedy": make_share(), "modest": make_share()}
    add(shares["greedy"], 10, arrived=-100.0)
    add(shares["modest"], 10)
    shares["greedy"].virtual_time, shares["greedy"].was_busy = 1.0, True
    shares["modest"].was_busy = True
    at_risk = 10.0 * (TARGET_FACTOR - 1 - AT_RISK)
    assert pick(shares, now=at_risk - 0.1) == "greedy"
    assert pick(shares, now=at_risk + 0.1) == "modest"


@pytest.mark.parametrize("urgent", ["light", "heavy"])
@pytest.mark.parametrize(("cost_light", "cost_heavy"), [(0.02, 0.07), (0.11, 0.03)], ids=["cheap", "dear"])
def test_weights_bound_the_lag_of_busy_models(urgent: str, cost_light: float, cost_heavy: float) -> None:
    """Weights 1 and 3, both late all the time, one of them far more: that alone would give it the whole device."""
    shares = {"light": make_share(weight=1.0), "heavy": make_share(weight=3.0)}
    costs, used = {"light": cost_light, "heavy": cost_heavy}, {"light": 0.0, "heavy": 0.0}
    for name, share in shares.items():
        add(share, 1_000, arrived=-1e6 if name == urgent else 0.0)
    bound = MAX_LAG + max(costs[name] / shares[name].weight for name in shares)
    lags = []
    for _ in range(900):
        name = pick(shares, now=LATE)
        assert name is not None
        run(shares[name], costs[name])
        used[name] += costs[name]
        lags.append(abs(used["light"] / 1.0 - used["heavy"] / 3.0))
    assert max(lags) <= bound + ROUNDING
    total = sum(used.values())
    # |light - heavy / 3| <= bound with light + heavy = total: light is a quarter, give or take 3/4 of the bound
    assert used["heavy"] / total == pytest.approx(0.75, abs=0.75 * bound / total + ROUNDING)
    assert total > 10


def test_an_idle_model_earns_no_credit() -> None:
    shares = {"idle": make_share(), "busy": make_share()}
    add(shares["busy"], 10_000)
    for _ in range(1_000):  # 100 s of device time
        assert pick(shares, now=LATE) == "busy"
        run(shares["busy"], 0.1)
    add(shares["idle"], 10_000, arrived=-1e7)  # urgent from its first moment on
    order = []
    for _ in range(40):
        name = pick(shares, now=LATE)
        assert name is not None
        run(shares[name], 0.1)
        order.append(name)
    assert "busy" in order[: round(MAX_LAG / 0.1) + 2]  # not only after 100 s


@pytest.mark.parametrize("pause", [True, False], ids=["both-idle-between", "wakes-as-the-other-leaves"])
def test_a_model_that_used_an_idle_device_is_not_punished(pause: bool) -> None:
    """One serves alone for 100 s and goes; then the other one comes, and the two share the device as equals."""
    shares = {"early": make_share(), "late": make_share()}
    add(shares["early"], 2_000)
    for _ in range(1_000):
        assert pick(shares, now=LATE) == "early"
        run(shares["early"], 0.1)
    clear(shares["early"])
    if pause:
        assert pick(shares, now=LATE) is None
    add(shares["late"], 10_000)
    assert pick(shares, now=LATE) == "late"
    run(shares["late"], 0.1)
    add(shares["early"], 10_000, arrived=-1e7)  # urgent
    assert pick(shares, now=LATE) == "early"


@settings(deadline=None)
@given(
    wakes=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30), st.integers(1, 40)), max_size=12),
    weights=st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * 3),
)
def test_no_busy_model_falls_further_behind_than_its_lag(
    wakes: list[tuple[str, int, int]], weights: tuple[float, float, float]
) -> None:
    """wakes: a model gets a request of so many steps, then the device runs for so many steps of 0.1 s.

    All are late: a model that is not may wait, whatever its share.
    """
    shares = {name: make_share(weight=weight) for name, weight in zip("abc", weights, strict=True)}
    bound = MAX_LAG + 0.1 / min(weights) + ROUNDING
    for waking, num_steps, device_steps in wakes:
        add(shares[waking], num_steps, arrived=-1.0 if waking == "a" else 0.0)
        for _ in range(device_steps):
            name = pick(shares, now=LATE)
            times = [share.virtual_time for share in shares.values() if share.scheduler.has_work]
            assert not times or max(times) - min(times) <= bound
            if name is not None:
                run(shares[name], 0.1)
