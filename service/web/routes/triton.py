"""Triton's extensions of the Open Inference Protocol: statistics, model configuration, repository index.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_configuration.md
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from service.errors import InvalidRequest, UnknownModel
from service.observe.metrics import Metrics
from service.web.bodies import read_bytes
from service.web.dialects import INFERENCE, document
from service.web.routes.inference_v2 import PLATFORM, VERSION, add_twice

router = APIRouter(prefix="/v2", tags=["Open Inference"])
model_routes = APIRouter()


class Duration(BaseModel):
    count: int
    ns: int


class ModelStatistics(BaseModel):
    """Since the start of the process; requests of all three APIs count."""

    name: str
    version: str
    inference_count: int  # images
    execution_count: int  # steps of the engine
    inference_stats: dict[str, Duration]
    batch_stats: list[Any] = []


class Statistics(BaseModel):
    model_stats: list[ModelStatistics]


class TensorConfig(BaseModel):
    name: str
    data_type: str
    dims: list[int]  # -1 is the number of images


class ModelConfiguration(BaseModel):
    name: str
    platform: str
    backend: str
    max_batch_size: int  # 0, as Triton has it where the batch is a dimension like any other
    input: list[TensorConfig]
    output: list[TensorConfig]


class IndexEntry(BaseModel):
    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


@router.get("/models/stats", summary="Statistics of all models")
async def all_statistics(request: Request) -> Statistics:
    handler = request.app.state.handler
    return Statistics(model_stats=[statistics(handler.metrics, name) for name in handler.names])


@model_routes.get("/stats", summary="Statistics of a model")
async def model_statistics(request: Request, model: str) -> Statistics:
    handler = request.app.state.handler
    handler.card(model)
    return Statistics(model_stats=[statistics(handler.metrics, model)])


def statistics(metrics: Metrics, model: str) -> ModelStatistics:
    """The numbers of /metrics, in Triton's terms."""

    def read(name: str, *labels: str) -> float:
        return metrics.totals(name, model, *labels)[-1]

    answered, nothing = int(read("requests", "ok")), Duration(count=0, ns=0)
    failed = sum(read("requests", outcome) for outcome in ("rejected", "expired", "error"))
    whole, queue, denoise = (read(f"request_{part}_seconds") for part in ("duration", "queue", "denoise"))

    def took(seconds: float) -> Duration:
        return Duration(count=answered, ns=round(max(seconds, 0) * 1e9))

    return ModelStatistics(
        name=model,
        version=VERSION,
        inference_count=int(read("images")),
        execution_count=int(sum(metrics.totals("step_duration_seconds", model)[:-1])),
        inference_stats={
            "success": took(whole),
            "fail": Duration(count=int(failed), ns=0),
            "queue": took(queue),
            "compute_input": nothing,
            "compute_infer": took(denoise),
            "compute_output": took(whole - queue - denoise),
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
    )


@model_routes.get("/config", summary="Configuration of a model")
async def model_configuration(request: Request, model: str) -> ModelConfiguration:
    C, H, W = request.app.state.handler.card(model).image_shape
    integers = [TensorConfig(name=name, data_type="TYPE_INT64", dims=[-1]) for name in ("class", "seed")]
    images = TensorConfig(name="images", data_type="TYPE_UINT8", dims=[-1, H, W, C])
    return ModelConfiguration(
        name=model,
        platform=PLATFORM,
        backend="stepwise",
        max_batch_size=0,
        input=integers,
        output=[images, integers[1]],
    )


@router.post(
    "/repository/index",
    responses=document(INFERENCE, (InvalidRequest, UnknownModel)),
    summary="All models and their state",
)
async def repository_index(request: Request) -> list[IndexEntry]:
    """A body is not needed; that of Triton's client, `{"ready": true}`, asks for the models that are ready."""
    body = b"".join((await read_bytes(request)).split())
    handler = request.app.state.handler
    reason = handler.unreadiness()
    if reason and b'"ready":true' in body:
        return []
    state = "UNAVAILABLE" if reason else "READY"
    return [IndexEntry(name=name, version=VERSION, state=state, reason=reason) for name in handler.names]


add_twice(router, model_routes)
