"""The runner of CUDA graphs: its padding, its buffers and its order, with a device that stands in for the GPU."""

import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from service.engine.core import EngineConfig, EngineCore
from service.engine.graphs import WARM_UP_RUNS, CudaDevice, GraphRunner
from service.engine.launched import Completed, Event
from service.engine.request import Request, RequestStatus
from tests.service.engine.tiny import (
    CPU,
    Cramped,
    drive,
    make_params,
    make_request,
    picture_of,
    random_params,
    samplers_of,
    solo,
    tiny_config,
    tiny_model,
)
from tests.service.pictures import difference


@dataclass
class Arrival(Completed):
    """The end of a copy, whose bytes arrive when somebody waits for it."""

    value: Tensor
    target: Tensor

    @torch.inference_mode()
    def synchronize(self) -> None:
        self.target.copy_(self.value)


class Replayed(CudaDevice):
    """Captures by keeping the function. A copy arrives when it is waited for, as late as the host allows."""

    def __init__(self) -> None:
        self.replays = 0
        self.buffers: list[Tensor] = []

    def host_buffer(self, size: int) -> Tensor:
        self.buffers.append(torch.empty(size, dtype=torch.uint8))
        return self.buffers[-1]

    def capture(self, step: Callable[[], None], *, has_run: bool = False) -> Callable[[], None]:
        step()

        def replay() -> None:
            self.replays += 1
            step()

        return replay

    def fetch(self, source: Tensor, target: Tensor) -> Event:
        value = source.clone()
        target.fill_(255)
        return Arrival(value, target)

    def seconds(self, replay: Callable[[], None]) -> float:
        started = time.monotonic()
        replay()
        return time.monotonic() - started


def graph_runner(architecture: str = "dit", num_slots: int = 6, model: nn.Module | None = None) -> GraphRunner:
    arguments = (model or tiny_model(architecture), tiny_config(architecture), CPU, torch.float32, num_slots)
    return GraphRunner(*arguments, graph_device=Replayed())


def make_core(*runners: GraphRunner, **bounds: Any) -> EngineCore:
    core = EngineCore(dict(zip(("dit", "unet"), runners, strict=False)), EngineConfig(**bounds))
    for model in core.runners:
        core.warm_up(model)
    return core


def requests(count: int, seed: int = 0) -> list[Request]:
    rng = random.Random(seed)
    samplers = {model: samplers_of(tiny_config(model)) for model in ("dit", "unet")}
    drawn = [random_params(rng, model, samplers[model]) for model in rng.choices(["dit", "unet"], k=count)]
    return [make_request(params) for params in drawn]


@pytest.mark.parametrize("seed", range(3))
def test_random_requests_get_the_images_of_the_plain_loop(seed: int) -> None:
    """Both models, padded buckets, one step ahead, arrivals at any time."""
    core = make_core(graph_runner("dit"), graph_runner("unet"))
    everyone = requests(12, seed)
    ended, steps = drive(core, {i: [request] for i, request in enumerate(everyone)})
    assert sorted(ended, key=id) == sorted(everyone, key=id)
    for request in everyone:
        assert request.status is RequestStatus.FINISHED
        model = core.runners[request.params.model].model
        for index, image in request.images.items():
            latent = solo(model, tiny_config(request.params.model), request.params, index)
            assert difference(image, picture_of(latent, request.params)) <= 1
    assert sum(step.num_rows for step in steps) == sum(r.total_rows for r in everyone)


def test_a_step_is_padded_to_its_bucket() -> None:
    runner = graph_runner(num_slots=40)  # buckets 1 .. 16, 24, 32, 40
    runner.warm_up(40)
    assert [runner.padded(rows) for rows in (1, 16, 17, 24, 25, 33)] == [1, 16, 24, 24, 32, 40]
    core = EngineCore({"dit": runner}, EngineConfig(40))
    core.warm_up("dit")
    _, steps = drive(core, {0: [make_request(make_params(num_steps=2, seeds=tuple(range(17))))]})
    assert [(step.num_rows, step.num_padding_rows) for step in steps] == [(17, 7)] * 2


def test_padding_leaves_slots_alone() -> None:
    runner = graph_runner(num_slots=40)
    runner.warm_up(40)
    runner.pool.x[17:40], runner.pool.history[17:40] = 9.0, 8.0
    request = make_request(make_params(num_steps=3, seeds=tuple(range(17)), guidance_scale=1.0))
    for slot, task in enumerate(request.tasks):
        task.slot = slot
    for _ in range(3):
        result = runner.execute(request.tasks)
        assert not result.failed
        for task in request.tasks:
            task.step += 1
    assert (runner.pool.x[17:40] == 9.0).all()
    assert (runner.pool.history[17:40] == 8.0).all()


def test_the_host_launches_the_next_step_before_it_collects_the_last() -> None:
    runner = graph_runner()
    core = make_core(runner)
    core.add(make_request(make_params(num_steps=3)))
    device = runner._graph_device
    assert isinstance(device, Replayed)
    device.replays = 0
    seen = []
    while core.has_work:
        progress = core.step()
        ended, stats = progress.ended, progress.stats
        seen.append((device.replays, stats is not None, len(ended)))
    assert seen == [(1, False, 0), (2, True, 0), (3, True, 0), (3, True, 1)]


def test_device_time_is_not_counted_twice() -> None:
    """A step's time begins when the one before it has ended, though it was launched earlier."""
    ticks = count()
    core = EngineCore({"dit": graph_runner()}, EngineConfig(4), clock=lambda: float(next(ticks)))
    core.warm_up("dit")
    core.add(make_request(make_params(num_steps=20)))
    started = core.clock()
    _, steps = drive(core)
    assert len(steps) == 20
    assert sum(step.seconds for step in steps) <= core.clock() - started


def test_the_block_of_the_step_on_the_device_is_not_overwritten() -> None:
    """An asynchronous copy may still read the last step's buffer while the host packs the next one."""
    runner = graph_runner()
    runner.warm_up(4)
    device = runner._graph_device
    assert isinstance(device, Replayed)
    tasks = make_request(make_params(num_steps=3)).tasks
    tasks[0].slot = 0
    contents: list[list[bytes]] = []
    for tasks[0].step in range(3):
        runner.launch(tasks)
        contents.append([buffer.numpy().tobytes() for buffer in device.buffers[::2]])
    for before, after in zip(contents, contents[1:], strict=False):
        assert [a == b for a, b in zip(before, after, strict=True)].count(True) == 1  # the last step's


class Poisoned(nn.Module):
    """Gives NaN for class 3 from a timestep on."""

    num_classes = 10

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.where(((y == 3) & (t < 600))[:, None, None, None], torch.nan, x / 2)


def test_a_failure_ends_its_request_once_though_a_later_step_is_on_its_way() -> None:
    core = make_core(graph_runner(model=Poisoned()))
    bad = make_request(make_params(class_label=3, num_steps=4, seeds=(1, 2)))
    good = make_request(make_params(class_label=2, num_steps=6))
    ended, _ = drive(core, {0: [bad, good]})
    assert ended == [bad, good]
    assert bad.status is RequestStatus.FAILED
    assert bad.error == "the model gave a non-finite image at step 3"
    assert good.status is RequestStatus.FINISHED
    scheduler = core.shares["dit"].scheduler
    assert len(scheduler.free_slots) == scheduler.num_slots


@pytest.mark.parametrize("after", range(1, 4))
def test_an_abort_while_the_last_step_is_on_the_device_ends_the_request(after: int) -> None:
    core = make_core(graph_runner())
    gone, stays = (make_request(make_params(num_steps=3, seeds=(seed,))) for seed in (1, 2))
    core.add(gone)
    core.add(stays)
    for _ in range(after):
        core.step()
    assert core.abort(gone.request_id) is gone
    ended, _ = drive(core)
    assert ended == [stays]
    assert (gone.status, stays.status) == (RequestStatus.ABORTED, RequestStatus.FINISHED)
    scheduler = core.shares["dit"].scheduler
    assert len(scheduler.free_slots) == scheduler.num_slots


def test_buckets_that_do_not_fit_into_memory_are_left_out() -> None:
    runner = graph_runner(model=Cramped(3))
    assert runner.warm_up(6) == 3
    assert runner.padded(2) == 2
    assert max(runner.step_seconds) == 3


class Idle:
    """A stream, or a graph whose captures end in an error where `broken`."""

    broken = True

    def wait_stream(self, _: object) -> None:
        pass

    def capture_begin(self, *_: object, **__: object) -> None:
        pass

    def capture_end(self) -> None:
        if self.broken:
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self) -> None:
        pass


@pytest.fixture
def idle_device(monkeypatch: pytest.MonkeyPatch) -> tuple[CudaDevice, list[str]]:
    """A CudaDevice without a GPU, and what it does that holds up the steps."""
    device, waits = CudaDevice.__new__(CudaDevice), list[str]()
    device.device, device._memory, device._side = CPU, None, Idle()  # pyright: ignore[reportAttributeAccessIssue]
    for name, stand_in in (("stream", nullcontext), ("CUDAGraph", Idle), ("current_stream", Idle)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, made=stand_in, **__: made())
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: waits.append(name))
    return device, waits


@pytest.mark.parametrize("cause", [torch.OutOfMemoryError("full"), RuntimeError("other")], ids=str)
def test_a_capture_that_fails_says_why(cause: RuntimeError, idle_device: tuple[CudaDevice, list[str]]) -> None:
    """PyTorch ends such a capture with an error of its own; where memory was the cause, that one is raised."""
    left = iter([None] * WARM_UP_RUNS)

    def step() -> None:
        try:
            next(left)
        except StopIteration:
            raise cause from None

    with pytest.raises(type(cause)) as raised:
        idle_device[0].capture(step)
    assert (raised.value is cause) == isinstance(cause, torch.OutOfMemoryError)


def test_the_capture_of_a_successor_holds_up_no_step(
    idle_device: tuple[CudaDevice, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Idle, "broken", False)
    device, waits = idle_device
    runs: list[int] = []
    device.capture(lambda: runs.append(1))
    assert (len(runs), waits) == (WARM_UP_RUNS + 1, ["synchronize", "empty_cache"])
    device.capture(lambda: runs.append(1), has_run=True)
    assert (len(runs), waits) == (WARM_UP_RUNS + 2, ["synchronize", "empty_cache"])


def test_a_successor_captures_what_has_run() -> None:
    seen: list[tuple[int, bool]] = []

    class Watched(Replayed):
        def capture(self, step: Callable[[], None], *, has_run: bool = False) -> Callable[[], None]:
            seen.append((len(seen), has_run))
            return super().capture(step, has_run=has_run)

    arguments = (tiny_model(), tiny_config(), CPU, torch.float32, 2)
    runner = GraphRunner(*arguments, graph_device=Watched())
    runner.warm_up(2)
    other = runner.successor(tiny_model(), tiny_config())
    for rows in (2, 1):
        other.prepare(rows)
    assert seen == [(0, False), (1, False), (2, True), (3, True)]
