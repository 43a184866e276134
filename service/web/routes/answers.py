"""What the routes that generate share: the wait for an answer, and its headers."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from service.errors import ClientGone
from service.web.event_stream import disconnected
from service.web.generation import Generated
from service.web.resolve import told_seeds
from service.wire.messages import ModelCard, SamplingParams

T = TypeVar("T")
NO_STORE = {"Cache-Control": "no-store"}


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await work, but cancel it as soon as the client has gone, and raise ClientGone."""
    task, working, left = asyncio.current_task(), True, False
    assert task is not None  # every request is served by one

    def cancel_work(leaving: asyncio.Future[None]) -> None:
        nonlocal left
        if working and not leaving.cancelled():
            left = task.cancel()

    leaving = asyncio.ensure_future(disconnected(request.receive))
    leaving.add_done_callback(cancel_work)
    try:
        return await work
    except asyncio.CancelledError as error:
        if left and task.uncancel() == 0:  # else someone else wants the end of it
            raise ClientGone from error
        raise
    finally:
        working = False
        leaving.cancel()


def seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def picture_size(card: ModelCard) -> str:
    """Width x height, as OpenAI writes it."""
    return f"{card.image_shape[2]}x{card.image_shape[1]}"


def seed_headers(params: SamplingParams, simulated: bool) -> dict[str, str]:
    return {"X-Seed": told_seeds(params)} | ({"X-Simulated": "true"} if simulated else {})


def answer_headers(generated: Generated[Any]) -> dict[str, str]:
    timings = generated.timings.model_dump()
    timing = ", ".join(f"{name};dur={1000 * value:.3f}" for name, value in timings.items())
    return seed_headers(generated.params, generated.simulated) | {"Server-Timing": timing}
