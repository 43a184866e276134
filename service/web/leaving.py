"""Cancel the work on a request when its client disconnects."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from service.errors import ClientGone

T = TypeVar("T")


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await work, but cancel it as soon as the client has gone, and raise ClientGone."""
    task, working, left = asyncio.current_task(), True, False
    assert task is not None  # every request is served by one

    def cancel_work(leaving: asyncio.Future[None]) -> None:
        nonlocal left
        if working and not leaving.cancelled():
            left = task.cancel()

    leaving = asyncio.ensure_future(_disconnected(receive))
    leaving.add_done_callback(cancel_work)
    try:
        return await work
    except asyncio.CancelledError as error:
        if left and task.uncancel() == 0:  # otherwise the task was cancelled from elsewhere, too
            raise ClientGone from error
        raise
    finally:
        working = False
        leaving.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
