"""The Open Inference Protocol, version 2: class and seed as tensors, images as a tensor.

https://github.com/kserve/open-inference-protocol
"""

from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, Response

from service.errors import DeadlinePassed, DeadlineUnreachable, InvalidRequest, UnknownModel, echo
from service.web.bodies import read_bytes, refuse_query
from service.web.dialects import INFERENCE, document, invalid
from service.web.generation import RequestHandler
from service.web.job import Job
from service.web.leaving import unless_disconnected
from service.web.resolve import STANDS_FOR
from service.web.routes.answers import answer_headers
from service.web.schemas import MAX_SEED, Fields, GenerateBody, allowed
from service.web.tensors import (
    LENGTH_HEADER,
    InferenceRequest,
    InferenceResponse,
    RequestedOutput,
    parse,
    serialise,
)
from service.wire.messages import ModelCard

router = APIRouter(prefix="/v2", tags=["Open Inference"])

VERSION = "1"  # the only version of each model; /models has the version of the weights
PARAMETERS = (*STANDS_FOR, "negative_class", "quality", "deadline_ms", "deterministic")
TRITON_PARAMETERS = ("timeout", "priority")  # of its client's infer()
TIMEOUT = (1, 3_600_000_000)  # microseconds
INPUTS, OUTPUTS = ("class", "seed"), ("images", "seed")
EXTENSIONS = ["binary_tensor_data", "model_configuration", "parameters", "statistics"]
PLATFORM = "pytorch_diffusion"


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]  # -1 is the number of images
    parameters: dict[str, Any] | None = None  # of "class": class_names, in the order of their indices


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str = PLATFORM
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool
    name: str | None = None


@router.get("", summary="The server")
async def server_metadata(request: Request) -> ServerMetadata:
    return ServerMetadata(name=request.app.title, version=request.app.version, extensions=EXTENSIONS)


@router.get("/health/live", response_model=Live, summary="As /livez")
async def server_live(request: Request) -> Response:
    live = not request.app.state.handler.silence()
    return JSONResponse(Live(live=live).model_dump(), 200 if live else 503)


@router.get("/health/ready", response_model=Ready, summary="As /readyz")
async def server_ready(request: Request) -> Response:
    return _ready(request)


def add_twice(router: APIRouter, routes: APIRouter) -> None:
    """Add the routes of one model twice: under /models/{model} and under its /versions/{version}."""
    unknown = document(INFERENCE, (UnknownModel,))
    for prefix, checks in (("", []), ("/versions/{version}", [Depends(_check_version)])):
        router.include_router(routes, prefix="/models/{model}" + prefix, dependencies=checks, responses=unknown)


async def _check_version(version: str) -> None:
    if version != VERSION:
        raise UnknownModel(f"version: there is no version {echo(version)} of a model, only {VERSION}")


model_routes = APIRouter()


@model_routes.get("", response_model_exclude_none=True, summary="A model")
async def model_metadata(request: Request, model: str) -> ModelMetadata:
    config: ModelCard = request.app.state.handler.card(model)
    C, H, W = config.image_shape
    integers = [TensorMetadata(name=name, datatype="INT64", shape=[-1]) for name in INPUTS]
    integers[0].parameters = {"class_names": config.class_names}
    images = TensorMetadata(name="images", datatype="UINT8", shape=[-1, H, W, C])
    return ModelMetadata(name=model, versions=[VERSION], inputs=integers, outputs=[images, integers[1]])


@model_routes.get("/ready", response_model=Ready, summary="Whether a model is warm")
async def model_ready(request: Request, model: str) -> Response:
    request.app.state.handler.card(model)
    return _ready(request, name=model)


def _ready(request: Request, **name: str) -> Response:
    ready = not request.app.state.handler.unreadiness()
    return JSONResponse(Ready(ready=ready, **name).model_dump(exclude_none=True), 200 if ready else 503)


BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


@model_routes.post(
    "/infer",
    response_model=InferenceResponse,
    responses=document(INFERENCE),
    openapi_extra={"requestBody": BODY},
    summary="Generate images",
)
async def infer_model(request: Request, model: str) -> Response:
    """Inputs: `class` [n], and if you like `seed` [n]. Outputs: `images` UINT8 [n, H, W, C], `seed` INT64 [n].

    Sampling parameters (steps, sampler, guidance, ...) go into the request's `parameters`. Clients may send no
    Content-Type, so the body is read as it is.
    """
    refuse_query(request)
    handler: RequestHandler = request.app.state.handler
    handler.card(model)
    asked, inputs = parse(await read_bytes(request), request.headers.get(LENGTH_HEADER))
    job = await _resolve(handler, model, asked, inputs)
    outputs = _outputs(asked)
    try:
        generated = await unless_disconnected(request.receive, handler.generate(job, np.stack))
    except (DeadlineUnreachable, DeadlinePassed) as error:
        name = "timeout" if "timeout" in asked.parameters else "deadline_ms"
        raise type(error).field(name, error.errors[0].message, error.retry_after) from error
    answer = InferenceResponse(model_name=model, model_version=VERSION, id=asked.id, outputs=[])
    arrays = {"images": generated.result, "seed": np.array(job.params.seeds, np.int64)}
    binary = {name for name in outputs if asked.wants_binary(name)}
    body, json_length = serialise(answer, {name: arrays[name] for name in outputs}, binary)
    headers = answer_headers(generated)
    if json_length is None:
        return Response(body, headers=headers, media_type="application/json")
    headers[LENGTH_HEADER] = str(json_length)
    return Response(body, headers=headers, media_type="application/octet-stream")


add_twice(router, model_routes)


async def _resolve(
    handler: RequestHandler, model: str, asked: InferenceRequest, inputs: dict[str, list[int]]
) -> Job:
    classes, seeds = _read_inputs(inputs)
    wanted = {name: value for name, value in asked.parameters.items() if name != "binary_data_output"}
    for name in wanted:
        if name not in PARAMETERS + TRITON_PARAMETERS:
            known = ", ".join(PARAMETERS + TRITON_PARAMETERS)
            raise InvalidRequest.field(name[:40], f"there is no such parameter: use {known}")
    timeout = _read_triton(wanted)
    try:
        fields = GenerateBody.model_validate(wanted | {"model": model, "class": classes})
    except ValidationError as error:
        raise invalid(error.errors(), Fields(list(PARAMETERS), handler.limits)) from error
    job = await handler.resolve(fields, tuple(seeds))
    return job if timeout is None else replace(job, deadline_seconds=timeout)


def _read_inputs(inputs: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    """Class indices and seeds, one an image each; seeds is empty if none were sent."""
    for name in inputs:
        if name not in INPUTS:
            raise InvalidRequest.field(name[:40], f"there is no such input: use {', '.join(INPUTS)}")
    classes, seeds = inputs.get("class"), inputs.get("seed", [])
    if not classes:
        raise InvalidRequest.field("class", "required: a tensor of class indices, one an image")
    if seeds and len(seeds) != len(classes):
        raise InvalidRequest.field("seed", f"{len(seeds)} seeds for {len(classes)} classes")
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise InvalidRequest.field("seed", f"must be whole numbers from 0 to {MAX_SEED}, not {echo(seed)}")
    return classes, seeds


def _read_triton(wanted: dict[str, Any]) -> float | None:
    """Take the parameters that Triton's client sends out of `wanted`; returns the timeout in seconds."""
    if (priority := wanted.pop("priority", 0)) != 0:
        raise InvalidRequest.field(
            "priority", f"must be 0, because requests have no priorities here, not {echo(priority)}"
        )
    if (timeout := wanted.pop("timeout", None)) is None:
        return None
    if "deadline_ms" in wanted:
        raise InvalidRequest.field("timeout", "give timeout, in microseconds, or deadline_ms, but not both")
    if isinstance(timeout, bool) or not isinstance(timeout, int) or not TIMEOUT[0] <= timeout <= TIMEOUT[1]:
        raise InvalidRequest.field("timeout", f"must be {allowed(TIMEOUT)} (microseconds), not {echo(timeout)}")
    return timeout / 1e6


def _outputs(asked: InferenceRequest) -> list[str]:
    for output in asked.outputs:
        if output.name not in OUTPUTS:
            raise InvalidRequest.field(output.name[:40], f"there is no such output: use {', '.join(OUTPUTS)}")
        _check_output(output)
    return list(dict.fromkeys(output.name for output in asked.outputs)) or list(OUTPUTS)


def _check_output(output: RequestedOutput) -> None:
    if "classification" in output.parameters:
        raise InvalidRequest.field(output.name, "has no classes to sort: ask for it without class_count")
    if "shared_memory_region" in output.parameters:
        raise InvalidRequest.field(
            output.name, "cannot be written to shared memory: this service sends it in the answer"
        )
