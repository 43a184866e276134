"""Previews and images as server-sent events, with the names and fields of the OpenAI Images API."""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import ServiceError
from service.web.dialects import dialect_of
from service.web.generation import Generated, Shown
from service.web.job import Job
from service.web.leaving import unless_disconnected

logger = logging.getLogger(__name__)

MEDIA_TYPE = "text/event-stream"
STATES = PARTIAL, COMPLETED = "partial_image", "completed"
NAMES = [f"{kind}.{state}" for kind in ("image_generation", "image_edit") for state in STATES]
EVENT_SCHEMA = {  # of one event, as OpenAPI documents a stream
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": [*NAMES, "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
NO_TOKENS = {  # OpenAI's clients expect the field
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
REFUSAL_SECONDS = 1.0  # the status waits so long for a refusal, which the engine sends within a step
KEEP_ALIVE_SECONDS = 15.0  # between two comments, so that no proxy takes a long queue for a dead connection

Updates = AsyncGenerator[Shown[list[str]] | Generated[list[str]]]  # pictures in base64
Event = tuple[str, dict[str, Any]]  # name and data


async def picture_events(
    updates: Updates, job: Job, form: str, quality: str = "auto", kind: str = "image_generation"
) -> AsyncGenerator[Event]:
    """image_generation.partial_image for every preview, image_generation.completed for every image.

    Args:
        form: png, webp or jpeg.
        kind: prefix of the event names: image_generation or image_edit.
    """
    shown = Counter[int]()
    async with aclosing(updates):  # the access line has its outcome only if it ends before the response does
        async for update in updates:
            if isinstance(update, Shown):
                more = {"partial_image_index": shown[update.index], "step": update.step, "quality": quality}
                picture, forward = update.result[0], update.forward
                yield _event(f"{kind}.{PARTIAL}", update.index, picture, job, form, forward=forward, **more)
                shown[update.index] += 1
            else:
                more = {"timings": update.timings.model_dump(), "usage": NO_TOKENS, "quality": quality}
                for index, (picture, forward) in enumerate(zip(update.result, update.forwards, strict=True)):
                    yield _event(f"{kind}.{COMPLETED}", index, picture, job, form, forward=forward, **more)


def _event(name: str, index: int, picture: str, job: Job, form: str, **more: Any) -> Event:
    openai = {"background": "opaque", "created_at": int(time.time())}  # OpenAI's clients expect them
    own = {"image_index": index, "seed": job.params.seeds[index], "steps": job.params.num_steps}
    return name, {"type": name, "b64_json": picture, "output_format": form, "size": job.size} | openai | own | more


async def open_stream(events: AsyncGenerator[Event], headers: dict[str, str]) -> "EventStream":
    """Start the work, and wait REFUSAL_SECONDS before status 200 is sent.

    Raises:
        Exception: the request was refused or has failed within that time, so the answer can have its status.
    """
    first = asyncio.ensure_future(anext(events))
    try:
        await asyncio.wait({first}, timeout=REFUSAL_SECONDS)
    except BaseException:
        await _abandon(first, events)
        raise
    if first.done() and (error := first.exception()) is not None:
        raise error
    return EventStream(first, events, headers)


class EventStream(Response):
    """Sends all events. A disconnect cancels the work; a later error is sent as an event named error.

    Args:
        first: the next event, already being waited for.
    """

    media_type = MEDIA_TYPE

    def __init__(self, first: asyncio.Future[Event], events: AsyncGenerator[Event], headers: dict[str, str]):
        super().__init__(headers=headers | {"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._next, self._events = first, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await unless_disconnected(receive, self._write(scope, send))
        finally:
            await _abandon(self._next, self._events)

    async def _write(self, scope: Scope, send: Send) -> None:
        while True:
            done, _ = await asyncio.wait({self._next}, timeout=KEEP_ALIVE_SECONDS)
            text = self._take(scope) if done else ": still at work\n\n"
            if text is None:
                break
            await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _take(self, scope: Scope) -> str | None:
        """The text of the event that is ready; None after the last one."""
        done = self._next
        self._next = asyncio.ensure_future(anext(self._events))
        try:
            name, data = done.result()
        except StopAsyncIteration:
            return None
        except ServiceError as error:
            name, data = _error_event(scope, error)
        except Exception:
            logger.exception("a stream failed")
            name, data = _error_event(scope, ServiceError("the service failed on this request"))
        return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _error_event(scope: Scope, error: ServiceError) -> Event:
    return "error", dialect_of(scope["path"]).say(error, scope.get("request_id", ""))


async def _abandon(pending: asyncio.Future[Event], events: AsyncGenerator[Event]) -> None:
    """Cancel the work, if it has not ended."""
    pending.cancel()
    await asyncio.wait({pending})
    if not pending.cancelled():
        pending.exception()  # retrieved, or asyncio logs "exception was never retrieved"
    await events.aclose()
