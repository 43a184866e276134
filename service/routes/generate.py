"""POST /generate."""

import asyncio
import json
from collections.abc import Coroutine
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, Query, Request
from starlette.responses import Response

from models.checkpoint import ModelConfig
from service import event_stream, images
from service.dialects import document
from service.engine.request import SamplingParams
from service.errors import CLIENT_CLOSED_REQUEST, InvalidRequest
from service.event_stream import disconnected, open_stream, picture_events
from service.generation import Generated, Generator, check_previews
from service.images import MEDIA_TYPES
from service.negotiation import allows, negotiate
from service.schemas import GenerateBody, GeneratedImage, GenerateFields, GenerateResponse

T = TypeVar("T")
router = APIRouter()

DEFAULT_PREVIEWS = 4
FORMATS = MEDIA_TYPES | {"stream": event_stream.MEDIA_TYPE}
PICTURES = ("png", "webp", "jpeg")
BINARY = {"schema": {"type": "string", "format": "binary"}}
ANSWER = {
    "description": "The image; several as a grid, in JSON as a list, in npy as an array [n, H, W, C] of bytes; or "
    "events image_generation.partial_image, image_generation.completed and error",
    "content": {kind: BINARY for name, kind in MEDIA_TYPES.items() if name != "json"}
    | {"application/json": {"schema": {"$ref": "#/components/schemas/GenerateResponse"}}}
    | {event_stream.MEDIA_TYPE: {"schema": event_stream.EVENT_SCHEMA}},
    "headers": {
        "X-Seed": {"description": "Seed of each image, comma separated", "schema": {"type": "string"}},
        "X-Request-Id": {"description": "The service's name of this request", "schema": {"type": "string"}},
        "X-Simulated": {"description": "true: no model drew this", "schema": {"type": "string"}},
        "Server-Timing": {"description": "queue, denoise and encode in ms", "schema": {"type": "string"}},
    },
}


@router.post("/generate", response_class=Response, responses={200: ANSWER, **document()}, summary="Generate images")
async def generate(
    request: Request,
    query: Annotated[GenerateFields, Query()],
    body: Annotated[GenerateBody | None, Body()] = None,
) -> Response:
    """Sample images of one class. Fields come in the query, in a JSON body, or in both as long as they agree."""
    generator: Generator = request.app.state.generator
    refuse_repeats([name for name, _ in request.query_params.multi_items()], "query")
    if body is not None:  # parsed once more, because pydantic sees only the last of two equal keys
        pairs = json.loads(await request.body(), object_pairs_hook=lambda pairs: pairs)
        refuse_repeats([name for name, _ in pairs], "body")
    fields = merge(query, body)
    form = choose_format(fields, ",".join(request.headers.getlist("accept")))
    params = generator.resolve(fields)
    if form == "stream":
        return await _stream(generator, fields, params)
    etag = _etag(generator, fields, params, form)
    if etag and has_tag(request.headers.getlist("if-none-match"), etag):
        return Response(status_code=304, headers=cache_headers(etag))
    encode = images.encode_base64 if form == "json" else partial(images.encode, form=form)
    work = generator.generate(params, encode, seconds(fields.deadline_ms))
    generated = await unless_disconnected(request, work)
    if generated is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    content = generated.result
    if form == "json":
        content = as_json(generated, generator.config(params.model), request.scope["request_id"])
    return Response(content, headers=_headers(generated, etag), media_type=MEDIA_TYPES[form])


def merge(query: GenerateFields, body: GenerateFields | None) -> GenerateFields:
    """Raises InvalidRequest where both give a field and differ."""
    given = {} if body is None else body.model_dump(exclude_none=True, by_alias=True)
    for name, value in query.model_dump(exclude_none=True, by_alias=True).items():
        if given.setdefault(name, value) != value:
            raise InvalidRequest.field(name, f"the query says {value!r:.80}, the body {given[name]!r:.80}")
    return GenerateFields.model_validate(given)


def choose_format(fields: GenerateFields, accept: str) -> str:
    """A key of FORMATS: of an event stream, fields.format is the one of its pictures.

    Raises:
        NotAcceptable: the Accept header allows nothing that there is.
        InvalidRequest: the fields contradict it, or each other.
    """
    if fields.preview and allows(accept, event_stream.MEDIA_TYPE):
        form = "stream"
    elif fields.format and event_stream.MEDIA_TYPE not in accept.lower():
        form = fields.format
    else:
        form = negotiate(accept, FORMATS)
    if form == "stream" and fields.format not in (None, *PICTURES):
        message = f"{fields.format} cannot be streamed: use one of {', '.join(PICTURES)}"
        raise InvalidRequest.field("format", message)
    if form != "stream" and fields.preview:
        raise InvalidRequest.field("preview", f"needs Accept: {event_stream.MEDIA_TYPE}")
    return form if form == "stream" else fields.format or form


async def _stream(generator: Generator, fields: GenerateFields, params: SamplingParams) -> Response:
    form = fields.format or "png"
    previews = check_previews(params, DEFAULT_PREVIEWS if fields.preview is None else fields.preview, "preview")
    encode = partial(images.encode_base64, form=form)
    updates = generator.stream(params, encode, seconds(fields.deadline_ms), previews)
    events = picture_events(updates, params, form, picture_size(generator.config(params.model)))
    return await open_stream(events, seed_headers(params, params.model in generator.simulated))


def picture_size(config: ModelConfig) -> str:
    """Width x height, as OpenAI writes it."""
    return f"{config.image_shape[2]}x{config.image_shape[1]}"


def seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Await work, but cancel it and return None as soon as the client has gone."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def refuse_query(request: Request) -> None:
    """Where all fields stand in the body, what stands in the query would have no effect."""
    for name in request.query_params:
        raise InvalidRequest.field(name[:40], "fields belong into the body, the query takes none")


def refuse_repeats(names: list[str], place: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest.field(name, f"given more than once in the {place}")


def _etag(generator: Generator, fields: GenerateFields, params: SamplingParams, form: str) -> str:
    """Of answers that are the same bytes whenever they are asked for; empty for the others."""
    repeats = fields.deterministic and fields.seed is not None and form != "json"
    return generator.etag(params, form) if repeats else ""


def seed_headers(params: SamplingParams, simulated: bool) -> dict[str, str]:
    seeds = {"X-Seed": ",".join(str(seed) for seed in params.seeds)}
    return seeds | ({"X-Simulated": "true"} if simulated else {})


def timing_headers(generated: Generated[Any]) -> dict[str, str]:
    timings = generated.timings.model_dump()
    return {"Server-Timing": ", ".join(f"{name};dur={1000 * value:.3f}" for name, value in timings.items())}


def _headers(generated: Generated[Any], etag: str) -> dict[str, str]:
    seeds = seed_headers(generated.params, generated.simulated)
    return seeds | timing_headers(generated) | cache_headers(etag)


def cache_headers(etag: str) -> dict[str, str]:
    return {"ETag": etag, "Cache-Control": "no-cache"} if etag else {"Cache-Control": "no-store"}


def has_tag(if_none_match: list[str], etag: str) -> bool:
    """By weak comparison, as RFC 9110 has it for this header."""
    tags = {tag.strip().removeprefix("W/") for line in if_none_match for tag in line.split(",")}
    return bool(tags & {etag, "*"})


def as_json(generated: Generated[Any], config: ModelConfig, request_id: str) -> bytes:
    """generated.result holds PNGs in base64."""
    params = generated.params
    pairs = zip(params.seeds, generated.result, strict=True)
    answer = GenerateResponse(
        request_id=request_id,
        model=params.model,
        **{"class": config.class_names[params.class_label]},
        class_index=params.class_label,
        steps=params.num_steps,
        sampler=params.sampler,
        guidance=params.guidance_scale,
        guidance_interval=params.guidance_interval,
        images=[GeneratedImage(seed=seed, png_base64=picture) for seed, picture in pairs],
        timings=generated.timings,
    )
    return answer.model_dump_json(by_alias=True).encode()
