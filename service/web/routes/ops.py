"""Health, metrics, the models, and the configuration in force."""

import time
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from service.engine.thread import EngineThread
from service.web.schemas import Health, ModelList, ServiceInfo

router, exposition = (
    APIRouter(tags=["Operations"]),
    APIRouter(tags=["Operations"]),
)  # the second may have a port of its own
UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "Not so"}}


@router.get("/livez", response_model=Health, responses=UNAVAILABLE, summary="Does the engine's loop turn?")
async def livez(request: Request) -> Response:
    """503 means: restart this process. A full queue or a slow start never turns it red."""
    thread: EngineThread = request.app.state.thread
    if thread.dead:
        return _health("the engine has stopped")
    silence = time.monotonic() - thread.heartbeat
    if silence > request.app.state.generator.settings.heartbeat_seconds:
        return _health(f"the engine has been silent for {silence:.0f} s")
    return _health("")


@router.get("/readyz", response_model=Health, responses=UNAVAILABLE, summary="Are all models loaded and warm?")
async def readyz(request: Request) -> Response:
    thread: EngineThread = request.app.state.thread
    return _health("" if thread.ready else "warming up or shutting down")


@router.get("/models", summary="The served models")
async def models(request: Request) -> ModelList:
    return ModelList(models=request.app.state.describe())


@router.get("/info", summary="Versions, settings in force, measured step times")
async def info(request: Request) -> ServiceInfo:
    return request.app.state.info()


@exposition.get("/metrics", response_class=Response, summary="Prometheus exposition")
async def metrics(request: Request) -> Response:
    text = generate_latest(request.app.state.generator.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _health(reason: str) -> Response:
    health = Health(status="unavailable" if reason else "ok", reason=reason)
    return JSONResponse(health.model_dump(), 503 if reason else 200, {"Cache-Control": "no-store"})
