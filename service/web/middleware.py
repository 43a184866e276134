"""ASGI middleware around every request: request id, API key, errors, limits on query and body."""

import asyncio
import logging
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import (
    BodyTooLarge,
    ClientGone,
    RequestTimeout,
    ServiceError,
    Unavailable,
    UriTooLong,
    in_bytes,
)
from service.observe import logs
from service.observe.metrics import Metrics
from service.observe.tracing import TraceMiddleware
from service.settings import Settings
from service.web.dialects import NO_HEAD, answer
from service.web.http1 import MAX_HEAD, complete, head_too_large
from service.web.keys import KeyMiddleware, KeyRing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

CLIENT_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

MAX_BODY = 64 * 1024  # bytes; a request without files needs a few hundred
MAX_FILES_BODY = 12 * 1024 * 1024  # two files of uploads.MAX_FILE in base64, and the rest
FILES_PATHS = ("/generate", "/v1/images/edits", "/v1/images/variations")
MAX_HELD = 32 * 1024 * 1024  # bytes above MAX_BODY, summed over the bodies that a worker holds
MAX_QUERY = 4096  # bytes
CORS_METHODS = ["GET", "HEAD", "POST"]
CORS_READ = [  # headers of answers that scripts of other origins may read; browsers hide them by default
    "Accept-Encoding", "Allow", "Content-Disposition", "ETag", "Inference-Header-Content-Length", "Retry-After",
    "Retry-After-Ms", "Server-Timing", "WWW-Authenticate", "X-Request-Id", "X-Seed", "X-Simulated",
]  # fmt: skip

logger = logging.getLogger(__name__)


def install(app: FastAPI, settings: Settings, metrics: Metrics, provider: "TracerProvider | None" = None) -> None:
    """Add all middleware, the innermost first, because add_middleware wraps what is there already."""
    app.add_middleware(LimitMiddleware, body_seconds=settings.body_seconds)
    ring = KeyRing(settings.api_keys, metrics.board, metrics.entry) if settings.api_keys else None
    if ring is not None or settings.admin_key is not None:
        app.add_middleware(KeyMiddleware, ring=ring, admin_key=settings.admin_key)
    app.add_middleware(ErrorMiddleware)
    if settings.cors_origins:  # outside of the keys: a browser asks for permission without one
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=CORS_METHODS,
            # All headers: SDKs send their own (x-stainless-*), tracers add traceparent. It is safe, because this
            # service uses no cookies.
            allow_headers=["*"],
            expose_headers=CORS_READ,
        )
    if provider is not None:
        app.add_middleware(TraceMiddleware, provider=provider)
    app.add_middleware(RequestIdMiddleware)


class RequestIdMiddleware:
    """Gives every request an id; a client's own X-Request-Id is kept if CLIENT_REQUEST_ID matches it.

    It is the outermost middleware. It passes lifespan events to the router, so the others see requests only.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await scope["app"].router(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = given.decode() if CLIENT_REQUEST_ID.fullmatch(given) else uuid4().hex
        scope["request_id"] = request_id
        logs.request_id.set(request_id)  # never reset, so that uvicorn's later lines on this request have it, too
        line = logs.AccessLine(scope)

        async def named(message: Message) -> None:
            line.note(message)
            if message["type"] == "http.response.start":
                message["headers"] = complete(message["headers"], request_id)
            await send(message)

        failed = True
        try:
            await self.app(scope, receive, named)
            failed = False
        finally:
            line.write(failed)


class DirectMiddleware:
    """Calls the endpoints that generate directly: FastAPI's layers would take as long as all the rest of an answer.

    FastAPI keeps these routes for the OpenAPI document and to answer other methods with 405.

    Args:
        routes: by method and path; their endpoints take the request alone.
    """

    def __init__(self, app: ASGIApp, routes: dict[tuple[str, str], APIRoute]):
        self.app, self.routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self.routes.get((scope["method"], scope["path"]))
        if route is None:
            await self.app(scope, receive, send)
            return
        scope["route"] = route  # as FastAPI does, for traces
        response = await route.endpoint(Request(scope, receive))
        await response(scope, receive, send)


class HeadMiddleware:
    """Answers HEAD as GET; the server leaves the body out."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD" and scope["path"] not in NO_HEAD:
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)


class ErrorMiddleware:
    """Turns exceptions into answers: a ServiceError with its own status, anything else with 500.

    Starlette would do so outside of all middleware. Here the answer gets the CORS headers, without which a browser
    reports a CORS failure and hides the error itself.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientGone:
            return
        except Exception as error:
            if started:
                raise
            if not isinstance(error, ServiceError):
                logger.exception("the request failed")
                error = ServiceError("the service failed on this request")
            await answer(scope, error)(scope, receive, send)


class LimitMiddleware:
    """Answers 414 to a long query, 413 to a large body, 408 to a slow one, 503 if large ones would fill the memory.

    The whole body is read here, before the application runs, so that every route has the same limits. After a
    refusal service/web/protocol.py discards the rest of the body.
    """

    def __init__(self, app: ASGIApp, body_seconds: float):
        self.app, self.body_seconds = app, body_seconds
        self._held = 0  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = MAX_FILES_BODY if scope["path"] in FILES_PATHS else MAX_BODY
        _check_head(scope, limit)
        body = bytearray()
        try:
            await self._read(receive, body, limit)
            with ExitStack() as scope["at_end"]:  # routes add contexts that end with the answer
                await self.app(scope, _replay(bytes(body), receive), send)
        finally:
            self._held -= _beyond(body)

    async def _read(self, receive: Receive, body: bytearray, limit: int) -> None:
        """Read into body, and add its bytes above MAX_BODY to self._held.

        Raises:
            BodyTooLarge, Unavailable, RequestTimeout: as soon as the limit is exceeded.
            ClientGone: the client left before the body was complete.
        """
        try:
            async with asyncio.timeout(self.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    before, more = _beyond(body), message.get("more_body", False)
                    body += message.get("body", b"")
                    self._held += _beyond(body) - before
                    if len(body) > limit:
                        raise _too_large(limit)
                    if before < _beyond(body) and self._held > MAX_HELD:
                        raise Unavailable.because("too many large bodies at once")
        except TimeoutError as error:
            raise RequestTimeout(f"the body did not arrive within {self.body_seconds:g} s") from error


def _beyond(body: bytearray) -> int:
    return max(0, len(body) - MAX_BODY)


def _check_head(scope: Scope, limit: int) -> None:
    """Check the head's size here, because http1.py limits only incomplete heads.

    Raises:
        UriTooLong, HeadersTooLarge, BodyTooLarge: before the body is read.
    """
    headers = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if headers + len(scope.get("raw_path", b"")) > MAX_HEAD:
        raise head_too_large()
    if len(scope["query_string"]) > MAX_QUERY:
        raise UriTooLong(f"the query is longer than {in_bytes(MAX_QUERY)}")
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge.field("body", f"must have at most {in_bytes(limit)}")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive function that returns the body as one message, then the messages of `receive`."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
