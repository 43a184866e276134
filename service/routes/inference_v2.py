"""The Open Inference Protocol, version 2: class and seed as tensors, images as a tensor.

https://github.com/kserve/open-inference-protocol
"""

from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, Response

from service.dialects import INFERENCE, document, invalid
from service.engine.request import SamplingParams
from service.errors import CLIENT_CLOSED_REQUEST, InvalidRequest, UnknownModel
from service.generation import Generator
from service.routes import ops
from service.routes.generate import refuse_query, seconds, seed_headers, timing_headers, unless_disconnected
from service.schemas import MAX_SEED, GenerateBody
from service.tensors import LENGTH_HEADER, InferenceRequest, InferenceResponse, parse, serialise

router = APIRouter(prefix="/v2")

VERSION = "1"  # a model has one; what it is made of is told by /models
PARAMETERS = ("steps", "sampler", "guidance", "guidance_low", "guidance_high", "deadline_ms", "deterministic")
INPUTS, OUTPUTS = ("class", "seed"), ("images", "seed")


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]  # -1 is the number of images


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: Literal["pytorch_diffusion"] = "pytorch_diffusion"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool
    name: str | None = None


@router.get("", summary="Open Inference: the server")
async def server_metadata(request: Request) -> ServerMetadata:
    return ServerMetadata(name=request.app.title, version=request.app.version, extensions=["binary_tensor_data"])


@router.get("/health/live", response_model=Live, summary="Open Inference: as /livez")
async def live(request: Request) -> Response:
    status = (await ops.livez(request)).status_code
    return JSONResponse(Live(live=status == 200).model_dump(), status)


@router.get("/health/ready", response_model=Ready, summary="Open Inference: as /readyz")
async def ready(request: Request) -> Response:
    return await _ready(request)


UNKNOWN: dict[str, Any] = {"responses": document(INFERENCE, (UnknownModel,))}


@router.get("/models/{model}", **UNKNOWN, summary="Open Inference: a model")
async def model_metadata(request: Request, model: str) -> ModelMetadata:
    return await version_metadata(request, model, VERSION)


@router.get("/models/{model}/versions/{version}", **UNKNOWN, summary="Open Inference: a version of a model")
async def version_metadata(request: Request, model: str, version: str) -> ModelMetadata:
    C, H, W = _generator(request, model, version).config(model).image_shape
    integers = [TensorMetadata(name=name, datatype="INT64", shape=[-1]) for name in INPUTS]
    images = TensorMetadata(name="images", datatype="UINT8", shape=[-1, H, W, C])
    return ModelMetadata(name=model, versions=[VERSION], inputs=integers, outputs=[images, integers[1]])


READY: dict[str, Any] = UNKNOWN | {"response_model": Ready}


@router.get("/models/{model}/ready", **READY, summary="Open Inference: whether a model is warm")
async def model_ready(request: Request, model: str) -> Response:
    return await version_ready(request, model, VERSION)


@router.get("/models/{model}/versions/{version}/ready", **READY, summary="Open Inference: whether it is warm")
async def version_ready(request: Request, model: str, version: str) -> Response:
    _generator(request, model, version)
    return await _ready(request, name=model)


async def _ready(request: Request, **name: str) -> Response:
    status = (await ops.readyz(request)).status_code
    return JSONResponse(Ready(ready=status == 200, **name).model_dump(exclude_none=True), status)


INFER: dict[str, Any] = {
    "response_model": InferenceResponse,
    "responses": document(INFERENCE),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
}


@router.post("/models/{model}/infer", **INFER, summary="Open Inference: generate images")
async def infer(request: Request, model: str) -> Response:
    """Inputs: `class` [n], and if you like `seed` [n]. Outputs: `images` UINT8 [n, H, W, C], `seed` INT64 [n].

    Sampling parameters (steps, sampler, guidance, ...) go into the request's `parameters`. Clients may send no
    Content-Type, so the body is read as it is.
    """
    return await infer_version(request, model, VERSION)


@router.post("/models/{model}/versions/{version}/infer", **INFER, summary="Open Inference: generate images")
async def infer_version(request: Request, model: str, version: str) -> Response:
    """As without a version: every model has exactly one."""
    refuse_query(request)
    generator = _generator(request, model, version)
    asked, inputs = parse(await request.body(), request.headers.get(LENGTH_HEADER))
    params, deadline = _resolve(generator, model, asked, inputs)
    outputs = _outputs(asked)
    generated = await unless_disconnected(request, generator.generate(params, np.stack, deadline))
    if generated is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    answer = InferenceResponse(model_name=model, model_version=VERSION, id=asked.id, outputs=[])
    arrays = {"images": generated.result, "seed": np.array(params.seeds, np.int64)}
    binary = {name for name in outputs if asked.wants_binary(name)}
    body, json_length = serialise(answer, {name: arrays[name] for name in outputs}, binary)
    headers = seed_headers(params, generated.simulated) | timing_headers(generated) | {"Cache-Control": "no-store"}
    if json_length is None:
        return Response(body, headers=headers, media_type="application/json")
    headers[LENGTH_HEADER] = str(json_length)
    return Response(body, headers=headers, media_type="application/octet-stream")


def _generator(request: Request, model: str, version: str) -> Generator:
    """Raises UnknownModel."""
    generator: Generator = request.app.state.generator
    generator.config(model)
    if version != VERSION:
        raise UnknownModel(f"version: {model} has no version {version[:20]!r}, only {VERSION}")
    return generator


def _resolve(
    generator: Generator, model: str, asked: InferenceRequest, inputs: dict[str, list[int]]
) -> tuple[SamplingParams, float | None]:
    """Sampling parameters and the deadline in seconds."""
    for name in inputs:
        if name not in INPUTS:
            raise InvalidRequest.field(name[:40], f"there is no such input: use {', '.join(INPUTS)}")
    labels, seeds = inputs.get("class"), inputs.get("seed", [])
    if not labels:
        raise InvalidRequest.field("class", "required: a tensor of class indices, one an image")
    if seeds and len(seeds) != len(labels):
        raise InvalidRequest.field("seed", f"{len(seeds)} seeds for {len(labels)} classes")
    if not all(0 <= seed <= MAX_SEED for seed in seeds):
        raise InvalidRequest.field("seed", f"0 to {MAX_SEED}")
    wanted = {name: value for name, value in asked.parameters.items() if name != "binary_data_output"}
    for name in wanted:
        if name not in PARAMETERS:
            raise InvalidRequest.field(name[:40], f"there is no such parameter: use {', '.join(PARAMETERS)}")
    try:
        fields = GenerateBody.model_validate(wanted | {"model": model, "n": len(labels)})
    except ValidationError as error:
        raise invalid(error.errors()) from error
    return generator.resolve(fields, labels=tuple(labels), seeds=tuple(seeds)), seconds(fields.deadline_ms)


def _outputs(asked: InferenceRequest) -> list[str]:
    wanted = list(dict.fromkeys(output.name for output in asked.outputs)) or list(OUTPUTS)
    for name in wanted:
        if name not in OUTPUTS:
            raise InvalidRequest.field(name[:40], f"there is no such output: use {', '.join(OUTPUTS)}")
    return wanted
