"""The wait for an answer, and the client that leaves meanwhile."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from starlette.types import Receive

from service.errors import ClientGone
from service.web.leaving import unless_disconnected


def receiver(leaving: asyncio.Event) -> Receive:
    async def receive() -> dict[str, Any]:
        await leaving.wait()
        return {"type": "http.disconnect"}

    return receive


async def outcome(leaving: asyncio.Event, work: Coroutine[Any, Any, str]) -> str | None:
    try:
        result = await unless_disconnected(receiver(leaving), work)
    except ClientGone:
        result = None
    for _ in range(5):  # a task that was left over would cancel this
        await asyncio.sleep(0)
    return result


def test_work_is_awaited_while_its_client_stays() -> None:
    async def main() -> None:
        assert await outcome(asyncio.Event(), asyncio.sleep(0.001, "picture")) == "picture"
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_work_is_cancelled_when_its_client_leaves() -> None:
    async def main() -> None:
        leaving, ended = asyncio.Event(), asyncio.Event()

        async def work() -> str:
            try:
                leaving.set()
                await asyncio.Event().wait()
            finally:
                ended.set()
            return "picture"

        assert await outcome(leaving, work()) is None
        assert ended.is_set()

    asyncio.run(main())


def test_a_client_that_leaves_as_the_work_ends_cancels_nothing_else() -> None:
    async def main(turns: int) -> None:
        leaving = asyncio.Event()

        async def work() -> str:
            leaving.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            return "picture"

        assert await outcome(leaving, work()) in ("picture", None)

    for turns in range(5):
        asyncio.run(main(turns))


def test_a_cancelled_wait_leaves_no_task() -> None:
    async def main() -> None:
        task = asyncio.create_task(outcome(asyncio.Event(), asyncio.sleep(60, "picture")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_a_failure_is_raised() -> None:
    async def work() -> str:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(outcome(asyncio.Event(), work()))
