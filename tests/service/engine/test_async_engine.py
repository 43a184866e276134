"""The engine as coroutines see it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from service.engine.async_engine import AsyncEngine
from service.engine.thread import EngineThread

from service.engine.core import EngineConfig, EngineCore
from service.engine.request import Request
from service.observe.board import StepStats
from service.wire.errors import EngineStopped, QueueFull, RequestFailed
from service.wire.messages import Preview, RequestOutput, SamplingParams
from tests.service.engine.desk import stop
from tests.service.engine.tiny import Turnstile, make_params, recording_runner, tiny_config
from tests.waiting import PATIENCE, wait_until


@dataclass
class Rig:
    engine: AsyncEngine
    thread: EngineThread
    core: EngineCore
    model: Turnstile
    steps: list[StepStats] = field(default_factory=list)
    aborted: list[Request] = field(default_factory=list)

    async def generate(self, **changes: Any) -> RequestOutput:
        async with asyncio.timeout(PATIENCE):
            return finished(await anext(self.engine.generate(make_params(**changes))))

    @property
    def slots_in_use(self) -> int:
        return len(self.core.shares["dit"].scheduler.running)


@contextmanager
def running(model: Turnstile | None = None, **bounds: Any) -> Iterator[Rig]:
    model = model or Turnstile()
    core = EngineCore({"dit": recording_runner(model, tiny_config())}, EngineConfig(4, **bounds))
    steps, aborted = [], []
    thread = EngineThread(core, steps.append, aborted.append)
    thread.start()
    wait_until(lambda: thread.ready)
    try:
        yield Rig(AsyncEngine(thread, {"dit": tiny_config()}), thread, core, model, steps, aborted)
    finally:
        model.open()
        stop(thread, 0.0)


def finished(update: Preview | RequestOutput) -> RequestOutput:
    assert isinstance(update, RequestOutput)
    return update


async def until(condition: Callable[[], bool]) -> None:
    """wait_until, with the event loop going on meanwhile."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


async def raised_by(awaitable: Awaitable[Any]) -> BaseException | None:
    try:
        await awaitable
    except BaseException as error:
        return error
    return None


def test_generate_yields_the_images_once() -> None:
    async def client() -> list[RequestOutput]:
        async with asyncio.timeout(PATIENCE):
            return [finished(output) async for output in rig.engine.generate(make_params(seeds=(1, 2)))]

    with running() as rig:
        (output,) = asyncio.run(client())
    assert len(output.images) == 2


def test_many_coroutines_get_their_own_images() -> None:
    async def clients() -> list[RequestOutput]:
        return await asyncio.gather(*[rig.generate(num_steps=1 + seed % 5, seeds=(seed,)) for seed in range(40)])

    with running() as rig:
        outputs = asyncio.run(clients())
        again = asyncio.run(rig.generate(num_steps=3, seeds=(17,)))  # 1 + 17 % 5 steps
    assert (outputs[17].images[0] == again.images[0]).all()
    assert len({output.images[0].tobytes() for output in outputs}) == 40


def test_refusals_are_raised() -> None:
    async def client() -> None:
        rig.model.close()
        first = asyncio.create_task(rig.generate(seeds=(1, 2, 3, 4)))
        await until(lambda: len(rig.model.rows) == 1)
        others = [asyncio.create_task(rig.generate()) for _ in range(2)]
        await asyncio.sleep(0)
        rig.model.open()
        errors = [await raised_by(task) for task in (first, *others)]
        assert errors[:2] == [None, None]
        assert isinstance(errors[2], QueueFull)

    with running(max_requests=1) as rig:
        asyncio.run(client())


def test_failures_are_raised() -> None:
    class Broken(Turnstile):
        def forward(self, x, t, y):
            return super().forward(x, t, y) / 0

    with running(Broken()) as rig:
        error = asyncio.run(raised_by(rig.generate()))
    assert isinstance(error, RequestFailed)


def test_a_sampler_that_the_model_has_not_is_refused_before_it_is_queued() -> None:
    with running() as rig, pytest.raises(ValueError, match="unknown sampler"):
        asyncio.run(anext_of(rig.engine, SamplingParams("dit", 0, 4, "heun", 1.0, (0.0, 1.0), (1,))))


async def anext_of(engine: AsyncEngine, params: SamplingParams) -> RequestOutput:
    async with asyncio.timeout(PATIENCE):
        return finished(await anext(engine.generate(params)))


def test_an_engine_that_is_not_ready_refuses() -> None:
    core = EngineCore({"dit": recording_runner(Turnstile(), tiny_config())}, EngineConfig(4))
    engine = AsyncEngine(EngineThread(core), {"dit": tiny_config()})
    with pytest.raises(EngineStopped, match="not ready"):
        asyncio.run(anext_of(engine, make_params()))


def test_cancellation_frees_the_slots_within_one_step_and_tells_what_it_saved() -> None:
    async def client() -> None:
        rig.model.close()
        kept = asyncio.create_task(rig.generate(num_steps=100, seeds=(9,)))
        await until(lambda: len(rig.model.rows) == 1)
        left = asyncio.create_task(rig.generate(num_steps=50, guidance_scale=2.0))
        await asyncio.sleep(0)
        await asyncio.to_thread(rig.model.let_pass, 10)  # the eleventh step is under way, the tenth of `left`
        left.cancel()
        assert isinstance(await raised_by(left), asyncio.CancelledError)
        assert rig.slots_in_use == 2
        await asyncio.to_thread(rig.model.let_pass, 1)
        assert rig.slots_in_use == 1  # the twelfth step has been entered without it
        rig.model.open()
        await kept

    with running() as rig:
        asyncio.run(client())
        assert rig.model.rows == [1] + [3] * 10 + [1] * 89
        (request,) = rig.aborted
        assert request.remaining_rows == 2 * (50 - 10)


def test_a_cancelled_request_in_the_queue_never_starts() -> None:
    async def client() -> None:
        rig.model.close()
        first = asyncio.create_task(rig.generate(seeds=(1, 2, 3, 4)))
        await until(lambda: len(rig.model.rows) == 1)
        waiting = asyncio.create_task(rig.generate(num_steps=7))
        await asyncio.sleep(0)
        waiting.cancel()
        await raised_by(waiting)
        rig.model.open()
        await first

    with running() as rig:
        asyncio.run(client())
        wait_until(lambda: len(rig.aborted) == 1)
        assert rig.model.rows == [4] * 4
        assert rig.aborted[0].remaining_rows == 7


def test_random_cancellations_leave_nothing_behind() -> None:
    """Two hundred coroutines, every third one cancelled after a different number of turns of the event loop."""

    async def clients() -> list[Any]:
        tasks = []
        for i in range(200):
            tasks.append(asyncio.create_task(rig.generate(num_steps=1 + i % 7, seeds=tuple(range(1 + i % 3)))))
            for _ in range(i % 4):
                await asyncio.sleep(0)
            if i % 3 == 0:
                tasks[i // 2].cancel()
        async with asyncio.timeout(PATIENCE):
            return await asyncio.gather(*tasks, return_exceptions=True)

    with running(max_requests=1_000) as rig:
        results = asyncio.run(clients())
        wait_until(lambda: not rig.core.has_work and rig.slots_in_use == 0)
        assert len(rig.core.shares["dit"].scheduler.slots) == 4
    kinds = [type(result) for result in results]
    assert set(kinds) == {RequestOutput, asyncio.CancelledError}
    assert len(rig.aborted) <= kinds.count(asyncio.CancelledError)
    for i, result in enumerate(results):
        assert isinstance(result, asyncio.CancelledError) or len(result.images) == 1 + i % 3


def test_an_event_loop_that_is_gone_does_not_hurt_the_engine() -> None:
    """The loop closes during the only step of its request, so the answer finds nobody."""

    async def leave() -> asyncio.Task[RequestOutput]:
        rig.model.close()
        task = asyncio.create_task(rig.generate(num_steps=1))
        await until(lambda: len(rig.model.rows) == 1)
        return task

    with running() as rig:
        task = asyncio.run(leave())
        assert task.cancelled()
        assert rig.steps == []
        rig.model.open()
        wait_until(lambda: len(rig.steps) == 1)
        output = asyncio.run(rig.generate())
        assert len(output.images) == 1
        assert not rig.thread.dead


def test_a_short_request_overtakes_a_long_one() -> None:
    async def clients() -> None:
        rig.model.close()
        long = asyncio.create_task(rig.generate(num_steps=200))
        await until(lambda: len(rig.model.rows) == 1)
        await asyncio.to_thread(rig.model.let_pass, 5)
        short = asyncio.create_task(rig.generate(num_steps=2))
        await asyncio.sleep(0)
        await asyncio.to_thread(rig.model.let_pass, 3)
        await short
        assert not long.done()
        rig.model.open()
        await long

    with running() as rig:
        asyncio.run(clients())
        wait_until(lambda: len(rig.steps) == 200)
        assert [step.num_rows for step in rig.steps] == [1] * 6 + [2] * 2 + [1] * 192
