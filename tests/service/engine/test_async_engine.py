"""The engine as coroutines see it."""

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from service.errors import GenerationFailed, InvalidRequest, QueueFull, Unavailable
from service.observe.scoreboard import EngineScoreboard, Layout, Scoreboard, StepStats
from service.wire.async_engine import MESSAGES_A_TURN, AsyncEngine, pixels
from service.wire.frames import frame
from service.wire.messages import Abort, FromEngine, Preview, Refusal, Reply, RequestOutput, TrajectoryPoint
from tests.service.engine.desk import Rig, make_core, rigged, until
from tests.service.engine.tiny import Turnstile, make_params
from tests.waiting import PATIENCE, wait_until

T = TypeVar("T")


@dataclass
class Client:
    rig: Rig
    model: Turnstile
    engine: AsyncEngine | None = None  # of the event loop that runs

    @property
    def steps(self) -> list[StepStats]:
        return self.rig.recorder.steps

    @property
    def spared(self) -> list[int]:
        return self.rig.recorder.spared_evaluations

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """On an event loop and with a connection of its own."""

        async def connected() -> T:
            async with self.rig.client() as self.engine:
                return await work()

        return asyncio.run(connected())

    async def generate(self, **changes: Any) -> RequestOutput:
        assert self.engine is not None
        async with asyncio.timeout(PATIENCE):
            return finished(await anext(self.engine.generate(make_params(**changes))))

    @property
    def slots_in_use(self) -> int:
        return len(self.rig.core.shares["dit"].scheduler.running)


@contextmanager
def running(model: Turnstile | None = None, **bounds: Any) -> Iterator[Client]:
    model = model or Turnstile()
    with rigged(make_core(model, **bounds)) as rig:
        yield Client(rig, model)


def finished(update: Preview | TrajectoryPoint | RequestOutput) -> RequestOutput:
    assert isinstance(update, RequestOutput)
    return update


async def sent() -> None:
    """What new tasks ask for has left: a task starts with one turn of the event loop, its frame with the next."""
    for _ in range(2):
        await asyncio.sleep(0)


async def raised_by(awaitable: Awaitable[Any]) -> BaseException | None:
    try:
        await awaitable
    except BaseException as error:
        return error
    return None


def test_generate_yields_the_images_once() -> None:
    async def client() -> list[RequestOutput]:
        assert rig.engine is not None
        async with asyncio.timeout(PATIENCE):
            return [finished(output) async for output in rig.engine.generate(make_params(seeds=(1, 2)))]

    with running() as rig:
        (output,) = rig.run(client)
    assert len(pixels(output)) == 2


def test_many_coroutines_get_their_own_images() -> None:
    async def clients() -> list[RequestOutput]:
        return await asyncio.gather(*[rig.generate(num_steps=1 + seed % 5, seeds=(seed,)) for seed in range(40)])

    with running() as rig:
        outputs = rig.run(clients)
        again = rig.run(lambda: rig.generate(num_steps=3, seeds=(17,)))  # 1 + 17 % 5 steps
    assert (pixels(outputs[17])[0] == pixels(again)[0]).all()
    assert len({pixels(output)[0].tobytes() for output in outputs}) == 40


def test_a_full_queue_raises_its_refusal() -> None:
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
        rig.run(client)


def test_a_failed_request_raises() -> None:
    class Broken(Turnstile):
        def forward(self, x, t, y):
            return super().forward(x, t, y) / 0

    with running(Broken()) as rig:
        error = rig.run(lambda: raised_by(rig.generate()))
    assert isinstance(error, GenerationFailed)


def test_a_sampler_that_the_model_lacks_is_refused_before_it_is_queued() -> None:
    with running() as rig:
        error = rig.run(lambda: raised_by(rig.generate(sampler="heun")))
        assert isinstance(error, InvalidRequest)
        assert error.errors[0].field == "sampler"
        assert "unknown sampler" in str(error)


def test_an_engine_that_is_not_ready_refuses() -> None:
    async def ask() -> None:
        engine = AsyncEngine(rig.attach(), rig.board)
        await engine.connect()
        try:
            await anext(engine.generate(make_params()))
        finally:
            engine.close()
            await asyncio.sleep(0)

    rig = Rig(make_core(Turnstile()))
    with pytest.raises(Unavailable, match="not ready"):
        asyncio.run(ask())
    rig.thread.start()
    rig.stop(0.0)
    rig.close()


def test_cancellation_frees_the_slots_within_one_step_and_tells_what_it_saved() -> None:
    async def client() -> None:
        rig.model.close()
        kept = asyncio.create_task(rig.generate(num_steps=100, seeds=(9,)))
        await until(lambda: len(rig.model.rows) == 1)
        left = asyncio.create_task(rig.generate(num_steps=50, guidance_scale=2.0))
        await sent()
        await asyncio.to_thread(rig.model.let_pass, 10)  # the eleventh step is under way, the tenth of `left`
        left.cancel()
        assert isinstance(await raised_by(left), asyncio.CancelledError)
        assert rig.slots_in_use == 2
        await asyncio.to_thread(rig.model.let_pass, 1)
        assert rig.slots_in_use == 1  # the twelfth step has been entered without it
        rig.model.open()
        await kept

    with running() as rig:
        rig.run(client)
        assert rig.model.rows == [1] + [3] * 10 + [1] * 89
        assert rig.spared == [2 * (50 - 10)]


def test_a_cancelled_request_in_the_queue_never_starts() -> None:
    async def client() -> None:
        rig.model.close()
        first = asyncio.create_task(rig.generate(seeds=(1, 2, 3, 4)))
        await until(lambda: len(rig.model.rows) == 1)
        waiting = asyncio.create_task(rig.generate(num_steps=7))
        await sent()
        waiting.cancel()
        await raised_by(waiting)
        rig.model.open()
        await first

    with running() as rig:
        rig.run(client)
        wait_until(lambda: rig.spared == [7])
        assert rig.model.rows == [4] * 4


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
        results = rig.run(clients)
        wait_until(lambda: not rig.rig.core.has_work and rig.slots_in_use == 0)
        scheduler = rig.rig.core.shares["dit"].scheduler
        assert len(scheduler.free_slots) == scheduler.num_slots
    kinds = [type(result) for result in results]
    assert set(kinds) == {RequestOutput, asyncio.CancelledError}
    assert len(rig.spared) <= kinds.count(asyncio.CancelledError)
    for i, result in enumerate(results):
        assert isinstance(result, asyncio.CancelledError) or len(pixels(result)) == 1 + i % 3


def test_answers_that_come_together_are_handed_on_over_several_turns() -> None:
    """So that the first clients have asked again before the last ones are answered."""

    async def main() -> list[tuple[int, int]]:
        mine, theirs = socket.socketpair()
        engine, turn = AsyncEngine(mine, Scoreboard(Layout(("dit",), ()), entries=2)), 0
        await engine.connect()
        heard: list[tuple[int, int]] = []

        def receive(message: FromEngine) -> None:
            assert isinstance(message, Reply)
            heard.append((turn, message.number))

        engine.receive = receive
        with theirs:
            theirs.sendall(frame([Reply(number, Refusal("full", "", [], 0.0)) for number in range(20)]))
            async with asyncio.timeout(PATIENCE):
                while len(heard) < 20:
                    await asyncio.sleep(0)
                    turn += 1
            engine.close()
            await asyncio.sleep(0)
        return heard

    heard = asyncio.run(main())
    assert [number for _, number in heard] == list(range(20))
    assert max(Counter(turn for turn, _ in heard).values()) == MESSAGES_A_TURN


def test_answers_that_have_come_are_handed_on_though_the_engine_has_gone() -> None:
    async def main() -> list[BaseException | None]:
        mine, theirs = socket.socketpair()
        board = Scoreboard(Layout(("dit",), ()), entries=2)
        EngineScoreboard(board).state("ready")
        engine = AsyncEngine(mine, board)
        engine.cards = {"dit": None}  # pyright: ignore[reportAttributeAccessIssue]
        await engine.connect()
        asked = [asyncio.create_task(raised_by(anext(engine.generate(make_params())))) for _ in range(11)]
        await sent()
        theirs.sendall(frame([Reply(number, Refusal("full", str(number), [], 0.0)) for number in range(10)]))
        theirs.close()
        async with asyncio.timeout(PATIENCE):
            found = await asyncio.gather(*asked)
        engine.close()
        await asyncio.sleep(0)
        return found

    *answered, lost = asyncio.run(main())
    assert [str(error) for error in answered] == [str(number) for number in range(10)]
    assert isinstance(lost, Unavailable)


def test_a_message_that_cannot_be_read_ends_the_connection() -> None:
    async def main() -> bool:
        mine, theirs = socket.socketpair()
        engine, lost = AsyncEngine(mine, Scoreboard(Layout(("dit",), ()), entries=2)), asyncio.Event()
        engine.on_loss = lost.set
        await engine.connect()
        engine._open[3] = asyncio.Queue()
        with theirs:
            theirs.sendall(frame([Reply(number, Refusal("full", "", [], 0.0)) for number in (1, 2)]))
            theirs.sendall(frame([Abort(3)]))  # which no engine says
            async with asyncio.timeout(PATIENCE):
                await lost.wait()
        return bool(engine.gone)

    assert asyncio.run(main())


def test_the_engine_goes_on_when_the_event_loop_of_a_request_is_closed() -> None:
    """The loop closes during the only step of its request, so nobody takes the answer."""

    async def leave() -> asyncio.Task[RequestOutput]:
        rig.model.close()
        task = asyncio.create_task(rig.generate(num_steps=1))
        await until(lambda: len(rig.model.rows) == 1)
        return task

    with running() as rig:
        task = rig.run(leave)
        assert isinstance(task.exception(), Unavailable)
        assert rig.steps == []
        rig.model.open()
        wait_until(lambda: len(rig.steps) == 1)
        output = rig.run(lambda: rig.generate())
        assert len(pixels(output)) == 1
        assert not rig.rig.dead
