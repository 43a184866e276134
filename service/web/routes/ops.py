"""Health, metrics, the models, and the configuration in force."""

from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from service.web.info import describe_model, describe_service
from service.web.schemas import Health, ModelList, ServiceInfo

router = APIRouter(tags=["Operations"])
exposition = APIRouter(tags=["Operations"])  # /metrics, which may have a port of its own
UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "Not so"}}


@router.get("/livez", response_model=Health, responses=UNAVAILABLE, summary="Does the engine's loop turn?")
async def livez(request: Request) -> Response:
    """503 means: restart this process. A full queue or a slow start never turns it red."""
    return _health(request.app.state.handler.silence())


@router.get("/readyz", response_model=Health, responses=UNAVAILABLE, summary="Are all models loaded and warm?")
async def readyz(request: Request) -> Response:
    return _health(request.app.state.handler.unreadiness())


@router.get("/models", summary="The served models")
async def models(request: Request) -> ModelList:
    return ModelList(models=[describe_model(card) for card in request.app.state.handler.engine.cards.values()])


@router.get("/info", summary="Versions, settings in force, measured step times")
async def info(request: Request) -> ServiceInfo:
    handler = request.app.state.handler
    return describe_service(handler.engine, handler.settings)


@exposition.get("/metrics", response_class=Response, summary="Prometheus exposition")
async def metrics(request: Request) -> Response:
    text = generate_latest(request.app.state.handler.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _health(reason: str) -> Response:
    health = Health(status="unavailable" if reason else "ok", reason=reason)
    return JSONResponse(health.model_dump(), 503 if reason else 200)
