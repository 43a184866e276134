"""Swaps, over the engine's socket: one answer each, whatever happens, and the steps go on."""

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor

from models.checkpoint import CheckpointError
from service.engine import swaps
from service.engine.runner import ModelRunner
from service.engine.versions import is_leaving
from service.errors import InvalidRequest, ServiceError, SwapUnderWay, Unavailable
from service.observe.scoreboard import EngineScoreboard, Layout, Scoreboard
from service.wire.async_engine import AsyncEngine, pixels
from service.wire.messages import Generate, RequestOutput
from tests.service.engine.desk import Desk, Rig, make_core, rigged, until
from tests.service.engine.tiny import Turnstile, make_params, tiny_config
from tests.waiting import wait_until


class Painter(Turnstile):
    """Predicts one shade everywhere, so that a picture tells who drew it."""

    def __init__(self, shade: float):
        super().__init__()
        self.shade = shade

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        super().forward(x, t, y)
        return torch.full_like(x, self.shade)


class Raising(Painter):
    """Raises in its forward."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        raise ZeroDivisionError


class Shelf:
    """Networks by folder; an exception is raised. It hands out nothing while `opened` is not set."""

    def __init__(self, **content: Painter | Exception):
        self.content = content
        self.opened = threading.Event()
        self.opened.set()
        self.asked = 0

    def load(self, model: str, folder: str, runner: ModelRunner) -> ModelRunner:
        self.asked += 1
        self.opened.wait()
        found = self.content[folder]
        if isinstance(found, Exception):
            raise found
        return runner.successor(found, tiny_config())


def run(rig: Rig, work: Callable[[AsyncEngine], Coroutine[Any, Any, Any]]) -> Any:
    async def connected() -> Any:
        async with rig.client() as engine:
            return await work(engine)

    return asyncio.run(connected())


async def shade(engine: AsyncEngine, **changes: Any) -> int:
    """The level of all pictures that a request gives."""
    async for output in engine.generate(make_params(**changes), version=engine.cards["dit"].version):
        assert isinstance(output, RequestOutput)
        images = pixels(output)
        assert images.min() == images.max()
        return int(images.min())
    raise AssertionError


OLD, NEW = 191, 64  # levels of 0.5 and -0.5
LONG = {"num_steps": 1000, "seeds": tuple(range(16))}  # a second or more, in which a swap is done


def test_a_running_request_keeps_the_old_weights_and_a_later_one_gets_the_new() -> None:
    async def work(engine: AsyncEngine) -> None:
        before = asyncio.create_task(shade(engine, **LONG))
        card = await engine.swap("dit", "new")
        assert card.version == 2
        assert await shade(engine) == NEW
        assert await before == OLD
        assert engine.cards["dit"] == card

    with rigged(make_core(Painter(0.5)), Shelf(new=Painter(-0.5)).load) as rig:
        run(rig, work)
        wait_until(lambda: list(rig.core.runners) == ["dit"])


def test_the_old_weights_are_freed_when_their_last_request_has_ended() -> None:
    async def work(engine: AsyncEngine) -> None:
        for _ in range(20):
            before = asyncio.create_task(shade(engine))
            await engine.swap("dit", "new")
            await before

    with rigged(make_core(Painter(0.5)), Shelf(new=Painter(-0.5)).load) as rig:
        first = weakref.ref(rig.core.runners["dit"])
        run(rig, work)
        wait_until(lambda: list(rig.core.runners) == ["dit"])
        assert first() is None
        assert rig.core.runners["dit"].version == 21
        wait_until(lambda: not any(thread.name == "swap" for thread in threading.enumerate()))


async def refusal(work: Awaitable[Any]) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await work
    return caught.value


@pytest.mark.parametrize(
    ("broken", "kind", "detail", "outcome"),
    [
        (CheckpointError("it is torn"), InvalidRequest, "checkpoint: it is torn", "failed"),
        (Unavailable("no memory"), Unavailable, "no memory", "refused"),
        (KeyError("secret"), InvalidRequest, "checkpoint: the network raised KeyError", "failed"),
        (torch.OutOfMemoryError("x"), Unavailable, "the device has no memory for a second copy", "refused"),
        (Painter(torch.nan), InvalidRequest, "checkpoint: the model gave a non-finite image at step 1", "failed"),
        (Raising(0.0), InvalidRequest, "checkpoint: the network raised ZeroDivisionError", "failed"),
    ],
    ids=["checkpoint", "refused", "bug", "memory", "nan", "raises"],
)
def test_a_broken_checkpoint_changes_nothing(
    broken: Painter | Exception, kind: type[ServiceError], detail: str, outcome: str
) -> None:
    async def work(engine: AsyncEngine) -> None:
        error = await refusal(engine.swap("dit", "broken"))
        assert isinstance(error, kind)
        assert error.detail.startswith(detail)
        assert engine.cards["dit"].version == 1
        assert await shade(engine) == OLD

    with rigged(make_core(Painter(0.5)), Shelf(broken=broken).load) as rig:
        run(rig, work)
        assert list(rig.core.runners) == ["dit"]
        assert rig.board.total(rig.board.layout.places["model_swaps", "dit", outcome]) == 1


def test_of_two_swaps_at_once_one_is_refused() -> None:
    shelf = Shelf(new=Painter(-0.5))

    async def work(engine: AsyncEngine) -> None:
        shelf.opened.clear()
        first = asyncio.create_task(engine.swap("dit", "new"))
        await until(lambda: shelf.asked == 1)
        error = await refusal(engine.swap("dit", "new"))
        assert isinstance(error, SwapUnderWay)
        assert await shade(engine) == OLD  # the steps go on
        shelf.opened.set()
        assert (await first).version == 2

    with rigged(make_core(Painter(0.5)), shelf.load) as rig:
        run(rig, work)


def test_a_third_version_is_not_read_before_the_first_has_left() -> None:
    """There are never more than two copies."""
    shelf, core, copies = Shelf(new=Painter(-0.5)), make_core(Painter(0.5)), []

    def load(*arguments: Any) -> ModelRunner:
        copies.append(len(core.runners))
        return shelf.load(*arguments)

    async def work(engine: AsyncEngine) -> None:
        before = asyncio.create_task(shade(engine, **LONG))
        await engine.swap("dit", "new")
        assert (await engine.swap("dit", "new")).version == 3
        assert await before == OLD

    with rigged(core, load) as rig:
        run(rig, work)
    assert copies == [1, 1]


@pytest.mark.parametrize("drain_seconds", [0.0, 60.0])
def test_a_stop_refuses_the_swap_that_is_under_way(drain_seconds: float) -> None:
    shelf = Shelf(new=Painter(-0.5))

    async def work(engine: AsyncEngine, rig: Rig) -> None:
        shelf.opened.clear()
        swap = asyncio.create_task(engine.swap("dit", "new"))
        await until(lambda: shelf.asked == 1)
        rig.request_stop(drain_seconds)
        error = await refusal(swap)
        assert "shutting down" in error.detail
        assert isinstance(await refusal(engine.swap("dit", "new")), Unavailable)

    with rigged(make_core(Painter(0.5)), shelf.load) as rig:
        run(rig, lambda engine: work(engine, rig))
        shelf.opened.set()
        rig.stop(0.0)
        assert not rig.loop.died


def test_a_worker_that_dies_holds_up_no_swap() -> None:
    """Neither as the one that asked for it, nor as one that would have to hear of it."""
    shelf = Shelf(new=Painter(-0.5))

    async def ask_and_leave(engine: AsyncEngine) -> None:
        shelf.opened.clear()
        asking = asyncio.create_task(engine.swap("dit", "new"))
        await until(lambda: shelf.asked == 1)
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking

    async def ask_again(engine: AsyncEngine) -> None:
        assert (await engine.swap("dit", "new")).version == 3

    with rigged(make_core(Painter(0.5)), shelf.load) as rig:
        run(rig, ask_and_leave)
        shelf.opened.set()
        wait_until(lambda: rig.board.total(rig.board.layout.places["model_swaps", "dit", "ok"]) == 1)
        run(rig, ask_again)


def test_a_swap_is_answered_after_every_worker_knows_of_it() -> None:
    """A desk takes the new cards and says nothing, like a worker that hangs."""

    async def work(engine: AsyncEngine, rig: Rig) -> None:
        desk = Desk(rig)
        await until(lambda: bool(desk.cards))
        swap = asyncio.create_task(engine.swap("dit", "new"))
        await until(lambda: engine.cards["dit"].version == 2)
        late = Generate(0, make_params(), version=1)
        desk.answers["0"] = []
        desk._write("0", late)
        await until(lambda: bool(desk.answers["0"]))
        (answer,) = desk.answers["0"]
        assert isinstance(answer, RequestOutput)
        assert pixels(answer).min() == OLD  # the version that this worker knows
        assert not swap.done()
        assert is_leaving(rig.core, "dit")
        desk._socket.shutdown(2)
        assert (await swap).version == 2
        desk.close()

    with rigged(make_core(Painter(0.5)), Shelf(new=Painter(-0.5)).load) as rig:
        run(rig, lambda engine: work(engine, rig))


def test_a_request_for_a_version_that_has_left_is_refused() -> None:
    async def work(engine: AsyncEngine, rig: Rig) -> None:
        await engine.swap("dit", "new")
        await until(lambda: list(rig.core.runners) == ["dit"])
        error = await refusal(anext(engine.generate(make_params(), version=1)))
        assert isinstance(error, Unavailable)
        assert error.retry_after

    with rigged(make_core(Painter(0.5)), Shelf(new=Painter(-0.5)).load) as rig:
        run(rig, lambda engine: work(engine, rig))


def test_an_engine_without_checkpoints_refuses() -> None:
    with rigged(make_core(Painter(0.5))) as rig:
        error = run(rig, lambda engine: refusal(engine.swap("dit", "new")))
    assert error.detail == "this engine has no checkpoints to swap to"


def test_the_steps_get_most_of_the_time_while_a_runner_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the preparation take a second of a clock that only they and the test move on."""
    now = [100.0]
    prepared: list[float] = []

    def prepare(self: ModelRunner, rows: int) -> None:
        prepared.append(now[0])
        now[0] += 1.0

    core = make_core(Painter(0.5))
    for model in core.runners:
        core.warm_up(model)
    core.runners["dit"].step_seconds |= {100: 1.0}  # more rows than a step has, so the successor needs no graph
    monkeypatch.setattr(swaps.time, "monotonic", lambda: now[0])
    board, client = EngineScoreboard(Scoreboard(Layout(core.runners, ()), entries=1)), Answered()
    told = swaps.Swaps(core, board, Shelf(new=Painter(-0.5)).load, list, lambda: None)
    told.begin(client, swaps.Swap(7, "dit", "new"))  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(ModelRunner, "prepare", prepare)
    while not client.sent:
        told.advance()
        now[0] += 0.5
    gaps = [after - before for before, after in zip(prepared, prepared[1:], strict=False)]
    assert len(prepared) == len(core.runners["dit"].step_seconds) - 1
    assert min(gaps) >= 1 + swaps.PAUSES


class Answered:
    """A client that keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def refuse(self, number: int, error: ServiceError) -> None:
        raise error
