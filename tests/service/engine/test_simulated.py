"""A device that takes time and computes nothing."""

from types import SimpleNamespace

import numpy as np
import pytest

from service.engine import runner as runner_module
from service.engine import simulated_device
from service.engine.core import EngineConfig, EngineCore
from service.engine.device_clock import LATE_RAISES, LEAST_LEAD, MOST_LEAD, DeviceClock
from service.engine.launched import LaunchedStep, StepResult
from service.engine.request import ImageTask, Request
from service.engine.simulated import SimulatedRunner, stripes
from service.engine.simulated_device import SPIN_SECONDS, SimulatedDevice, SimulatedEvent, StepCost, sleep_until
from service.registry import load_runners
from service.settings import ModelEntry, Settings, Simulation
from tests.service.engine.tiny import drive, make_params, make_request, tiny_config, warm_core


def test_requests_go_through_the_real_scheduler_and_get_stripes() -> None:
    core = warm_core(SimulatedRunner(tiny_config(), StepCost(0.1, 0.01), 8), max_rows=8)
    requests: list[Request] = [
        make_request(make_params(num_steps=steps, guidance_scale=2.0, seeds=(1, 2))) for steps in (3, 5)
    ]
    ended, steps = drive(core, {0: requests})
    assert ended == requests
    assert [step.num_rows for step in steps] == [8, 8, 8, 4, 4]
    for request in requests:
        assert sorted(request.images) == [0, 1]
        np.testing.assert_array_equal(request.images[0], stripes((1, 8, 8)))


def test_a_simulated_model_cannot_be_mistaken_for_a_real_one() -> None:
    runner = SimulatedRunner(tiny_config(), StepCost(1.0, 0.0), 2)
    assert runner.describe() == {"device": "simulated", "dtype": "none", "backend": "none"}
    picture = stripes((3, 32, 32))
    assert picture.shape == (32, 32, 3)
    assert sorted(np.unique(picture)) == [48, 208]  # two grey levels


class FakeTime:
    """A clock that moves by a microsecond a look, and by a sleep and its overshoot."""

    def __init__(self, overshoot: float = 0.0):
        self.now, self.overshoot, self.looks = 0.0, overshoot, 0

    def monotonic(self) -> float:
        self.now, self.looks = self.now + 1e-6, self.looks + 1
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.overshoot


@pytest.mark.parametrize("seconds", [0.0, 3e-5, 1e-4, 0.003])
@pytest.mark.parametrize("overshoot", [0.0, 2e-5, 1e-3])
def test_a_wait_ends_in_time_and_hardly_spins(
    seconds: float, overshoot: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTime(overshoot)
    monkeypatch.setattr(simulated_device, "time", fake)
    sleep_until(seconds)
    assert fake.now >= seconds
    assert fake.looks * 1e-6 <= SPIN_SECONDS + 3e-6


class Timeline:
    """A device on a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.device = SimulatedDevice(lambda: self.now, self._wait)

    def _wait(self, until: float) -> None:
        self.now = max(self.now, until)

    def launch(self, seconds: float = 2.0) -> SimulatedEvent:
        return self.device.launch(seconds)

    def core(self, cost: StepCost) -> tuple[EngineCore, SimulatedRunner]:
        """A warm engine of one model, which is on this device and clock."""
        runner = SimulatedRunner(tiny_config(), cost, 8, self.device)
        core = EngineCore({"dit": runner}, EngineConfig(8), clock=lambda: self.now)
        core.warm_up("dit")
        return core, runner


def test_a_step_costs_a_part_for_itself_and_one_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Timeline()
    monkeypatch.setattr(runner_module, "time", SimpleNamespace(monotonic=lambda: line.now))
    _, runner = line.core(StepCost(2.0, 0.5))
    assert runner.step_seconds == pytest.approx({rows: 0.002 + 0.0005 * rows for rows in range(1, 9)})


def test_steps_of_all_models_follow_each_other() -> None:
    line = Timeline()
    first, second = line.launch(), line.launch(3.0)
    second.synchronize()
    assert line.now == 5.0  # not 3
    first.synchronize()  # has long ended
    assert line.now == 5.0
    line.now = 10.0  # an idle time is lost
    line.launch().synchronize()
    assert line.now == 12.0


def test_work_of_the_host_during_a_step_takes_no_extra_time() -> None:
    line = Timeline()
    ends = [line.launch()]
    for _ in range(4):
        line.now += 1.5  # of work on the host, before the next step is launched
        ends.append(line.launch())
        ends.pop(0).synchronize()
    ends.pop().synchronize()
    assert line.now == 10.0


def test_the_device_is_never_busy_for_longer_than_the_time_that_has_passed() -> None:
    line, rng, busy = Timeline(), np.random.default_rng(0), 0.0
    for _ in range(200):
        seconds = float(rng.exponential())
        end = line.launch(seconds)
        busy += seconds
        line.now += float(rng.exponential(0.5))
        if rng.random() < 0.3:
            end.synchronize()
            assert 0 < busy <= line.now + 1e-9
    line.launch(100.0).synchronize()
    assert 0.8 * line.now < busy + 100.0 <= line.now + 1e-9


def test_the_models_of_a_service_share_one_device() -> None:
    entry = ModelEntry(config={"architecture": "dit"}, simulate=Simulation(t0_ms=1, t1_ms=0))
    runners = load_runners(Settings(models={"one": entry, "two": entry}, device="cpu", max_rows=2))
    one, two = runners.values()
    assert isinstance(one, SimulatedRunner)
    assert isinstance(two, SimulatedRunner)
    assert one.simulated_device is two.simulated_device


def test_an_engine_launches_ahead_and_answers_all() -> None:
    line = Timeline()
    core, _ = line.core(StepCost(1000.0, 0.0))
    begun = line.now
    ended, steps = drive(core, {0: [make_request(make_params(num_steps=5))]})
    assert len(ended) == 1
    assert [step.seconds for step in steps] == pytest.approx([1.0] * 5)
    assert line.now - begun == pytest.approx(5.0)


def test_a_launch_may_wait_until_the_device_is_nearly_free() -> None:
    line = Timeline()
    core, runner = line.core(StepCost(1000.0, 0.0))
    runner.step_seconds = {8: 1.0}
    assert core.spare_seconds() == 0.0
    core.add(make_request(make_params(num_steps=3)))
    core.step()
    assert core.spare_seconds() == pytest.approx(1.0 - MOST_LEAD)
    line.now += 0.9
    assert core.spare_seconds() == pytest.approx(0.1 - MOST_LEAD)
    core.step()  # the second one is launched, and the first one has ended
    assert core.spare_seconds() == pytest.approx(1.0 - MOST_LEAD, abs=1e-5)
    line.now += 1.5  # the host is late
    assert core.spare_seconds() < 0
    core.step()
    assert core.spare_seconds() == pytest.approx(1.0 - MOST_LEAD, abs=1e-5)
    core.step()
    assert core.spare_seconds() == 0.0


def test_the_lead_of_a_launch_follows_from_how_late_they_come() -> None:
    line = Timeline()
    device = DeviceClock(lambda: line.now)

    def lead() -> float:
        return device._free_at - line.now - device.spare_seconds()

    device.launched(line.now, 1.0, was_busy=False)
    assert lead() == pytest.approx(MOST_LEAD)
    for _ in range(1000):  # always in time, so the lead falls
        device.launched(line.now, 1.0, was_busy=True)
    assert lead() == pytest.approx(LEAST_LEAD)
    for late in range(1, 6):
        line.now = device._free_at + 0.001
        device.launched(line.now, 1.0, was_busy=True)
        assert lead() == pytest.approx(LEAST_LEAD + late * LATE_RAISES)


@pytest.mark.parametrize("believed", [1.0, 1.3, 20.0])
@pytest.mark.parametrize("host_ms", [0.5, 2.2, 2.5])
@pytest.mark.parametrize("collect_ms", [0.0, 0.4])
def test_waiting_on_purpose_is_not_taken_for_a_slow_device(
    believed: float, host_ms: float, collect_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it were, a host whose launch takes longer than the lead would wait longer and longer.

    A pause of the host makes steps look slow. The wait that follows must not hide how long they really take, and
    neither may the host's time for the results.
    """
    line = Timeline()
    core, runner = line.core(StepCost(3.0, 0.0))
    core.shares["dit"].scheduler.max_rows = 1  # one request after the other
    runner.step_seconds = {8: 0.003}
    launch = runner.launch

    def slow_launch(tasks: list[ImageTask]) -> LaunchedStep:
        line.now += host_ms / 1000
        return launch(tasks)

    collect = LaunchedStep.collect

    def slow_collect(step: LaunchedStep) -> StepResult:
        result = collect(step)
        line.now += collect_ms / 1000
        return result

    monkeypatch.setattr(runner, "launch", slow_launch)
    monkeypatch.setattr(LaunchedStep, "collect", slow_collect)
    for _ in range(2):
        core.add(make_request(make_params(num_steps=990)))
    core.shares["dit"].slowdown = believed
    started = line.now
    for step in range(1800):
        started = line.now if step == 900 else started
        line.now += max(0.0, core.spare_seconds())
        core.step()
    assert (line.now - started) / 900 < 0.0033
    assert 0.7 < core.shares["dit"].slowdown < 1.1
