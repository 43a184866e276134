"""The application of one HTTP worker, around an engine that runs elsewhere."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI
from fastapi.routing import APIRoute

from service.observe.metrics import Metrics
from service.observe.tracing import Spans
from service.settings import Settings
from service.web import dialects, images, info, middleware, openapi
from service.web.generation import RequestHandler
from service.web.routes import admin, edits, generate, inference_v2, openai, ops, page, triton
from service.web.schemas import FIELD_NAMES, Fields
from service.wire.async_engine import AsyncEngine

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


def _operation_id(route: APIRoute) -> str:
    """A unique id for OpenAPI; client generators use it as a function name."""
    return route.name.replace("model", "model_version") if "{version}" in route.path else route.name


FASTAPI_OPTIONS: dict[str, Any] = {
    "redirect_slashes": False,
    "docs_url": None,  # FastAPI's pages take their scripts from a foreign host
    "redoc_url": None,
    "generate_unique_id_function": _operation_id,
}


def assemble(
    engine: AsyncEngine,
    settings: Settings,
    entry: int,
    provider: "TracerProvider | None" = None,
    start: Callable[[], None] = lambda: None,
    stop: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The application; nothing runs until the server starts the lifespan.

    Args:
        entry: of the engine's board; this process writes its counters there.
        provider: receives the spans of requests; None turns tracing off.
        start, stop: called when the lifespan starts and ends, to run an engine in the same process.
    """
    metrics = Metrics(engine.board, entry, lambda: engine.cards.values())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.connect()
        start()
        await asyncio.to_thread(_rehearse)
        yield
        await asyncio.to_thread(stop)
        engine.close()
        if provider is not None:
            await asyncio.to_thread(provider.shutdown)

    version = info.version(info.PROJECT)
    app = FastAPI(title=openapi.TITLE, version=version, lifespan=lifespan, **FASTAPI_OPTIONS)
    app.state.started = int(time.time())
    names = engine.board.layout.models
    app.state.handler = handler = RequestHandler(engine, metrics, settings, names, Spans(provider), version)
    _add_routes(app, settings)
    app.add_middleware(middleware.HeadMiddleware)
    middleware.install(app, settings, metrics, provider)
    dialects.install(app, Fields(FIELD_NAMES, handler.limits))
    openapi.install(app, handler)
    return app


def _add_routes(app: FastAPI, settings: Settings) -> None:
    """The first matching route wins, so /v2/models/stats is added before /v2/models/{model}."""
    for routes in (page, generate, openai, edits, triton, inference_v2, ops):
        app.include_router(routes.router)
    if settings.admin_key is not None:
        app.include_router(admin.router)
    if settings.metrics_port is None:
        app.include_router(ops.exposition)
    app.add_middleware(middleware.DirectMiddleware, routes=_direct_routes())


def _direct_routes() -> dict[tuple[str, str], APIRoute]:
    """The POST routes that generate, by method and path; their paths have no parameters."""
    routers = (module.router.routes for module in (generate, openai, edits))
    routes = [route for found in routers for route in found if isinstance(route, APIRoute)]
    return {("POST", route.path): route for route in routes if route.methods == {"POST"}}


def _rehearse() -> None:
    """Load Pillow's encoders and start a pool thread, so that the first request does not wait for them."""
    for form in ("png", "webp", "jpeg"):
        images.encode([np.zeros((32, 32, 3), np.uint8)], form)
