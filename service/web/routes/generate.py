"""/generate: POST makes any picture, GET one that can be cached."""

from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.errors import InvalidRequest, Unavailable
from service.settings import Settings
from service.web import event_stream, images
from service.web.bodies import read_bytes, read_json, read_query, refuse_query, refuse_repeats
from service.web.dialects import document
from service.web.event_stream import open_stream, picture_events
from service.web.generation import Generated, RequestHandler
from service.web.images import ANIMATIONS, MEDIA_TYPES
from service.web.job import Job
from service.web.leaving import unless_disconnected
from service.web.negotiation import negotiate
from service.web.recording import RECORDED, recorded_bytes, recorder
from service.web.resolve import check_previews
from service.web.routes.answers import LargeResponse, answer_headers, has_tag, seed_headers
from service.web.schemas import FIELD_NAMES, Fields, GenerateBody, GeneratedImage, GenerateFields, GenerateResponse

router = APIRouter(tags=["Stepwise"])

DEFAULT_PREVIEWS = 4
FRESH_SECONDS = 3600  # max-age: a cache may serve old pictures so long after a model's weights have changed
# Formats that Accept may choose. No animations: browsers list image/apng only because they can show it.
FORMATS = {name: kind for name, kind in MEDIA_TYPES.items() if name not in ANIMATIONS}
FORMATS["stream"] = event_stream.MEDIA_TYPE
PICTURES = ("png", "webp", "jpeg")
LASTING = {name: kind for name, kind in MEDIA_TYPES.items() if name != "json"}  # JSON has timings, which vary
BINARY = {"schema": {"type": "string", "format": "binary"}}
HEADERS = {
    "X-Seed": {"description": "Seed of each image, the first 16, comma separated", "schema": {"type": "string"}},
    "X-Request-Id": {"description": "The service's name of this request", "schema": {"type": "string"}},
    "X-Simulated": {"description": "true: no model drew this", "schema": {"type": "string"}},
    "Server-Timing": {"description": "queue, denoise and encode in ms", "schema": {"type": "string"}},
}
ANSWER = {
    "description": "The image; several as a grid, in JSON as a list, in npy as an array [n, H, W, C] of bytes, in "
    "npz with x, denoised image and noise of every step, as an animation of the denoised images; or "
    "events image_generation.partial_image, image_generation.completed and error",
    "content": dict.fromkeys(LASTING.values(), BINARY)
    | {"application/json": {"schema": {"$ref": "#/components/schemas/GenerateResponse"}}}
    | {event_stream.MEDIA_TYPE: {"schema": event_stream.EVENT_SCHEMA}},
    "headers": HEADERS,
}
LASTING_ANSWER = {
    "description": "The image; several as a grid, in npy as an array [n, H, W, C] of bytes, in npz with every step",
    "content": dict.fromkeys(LASTING.values(), BINARY),
    "headers": HEADERS | {"ETag": {"description": "Names these bytes", "schema": {"type": "string"}}},
}
BODY = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/GenerateBody"}}}}
ONLY_POST = (
    "GET answers only with deterministic=true and a seed, so that its picture can be cached: add {}, or use POST"
)


@router.post(
    "/generate",
    response_class=Response,
    responses={200: ANSWER, **document()},
    openapi_extra={"requestBody": BODY | {"required": True}},
    summary="Generate images",
)
async def generate(request: Request) -> Response:
    """Sample images of one class, or from an image. The fields may stand in the query instead of the body."""
    handler: RequestHandler = request.app.state.handler
    fields = await _read(request, handler)
    form = choose_format(fields, ",".join(request.headers.getlist("accept")))
    job = await handler.resolve(fields)
    if form == "stream":
        return await _stream(handler, fields, job)
    generated = await _finish(request, handler, job, form)
    content = as_json(generated, request.scope["request_id"]) if form == "json" else generated.result
    return _response(content, form, answer_headers(generated))


@router.get(
    "/generate",
    response_class=Response,
    responses={200: LASTING_ANSWER, 304: {"description": "If-None-Match names it: no model ran"}, **document()},
    summary="A picture that can be linked and cached",
)
async def get_image(request: Request, query: Annotated[GenerateFields, Query()]) -> Response:
    """The same picture whenever it is asked for, which takes `deterministic=true` and a `seed`."""
    handler: RequestHandler = request.app.state.handler
    refuse_repeats(request)
    form = _lasting_format(query, ",".join(request.headers.getlist("accept")))
    job = await handler.resolve(query)
    etag = handler.etag(job, form)
    cached = _cache_headers(etag, bool(query.format), handler.settings)
    if etag and has_tag(request.headers.getlist("if-none-match"), etag):
        return Response(status_code=304, headers=cached)
    generated = await _finish(request, handler, job, form)
    # The ETag changes on the way if the device runs out of memory and lowers the rows of a step.
    if not etag or handler.etag(job, form) != etag:
        cached = {}
    return _response(generated.result, form, answer_headers(generated) | cached)


async def _read(request: Request, handler: RequestHandler) -> GenerateFields:
    """The fields of a POST: all in its body, or all in its query."""
    fields = Fields(FIELD_NAMES, handler.limits)
    if not await read_bytes(request):
        return read_query(request, GenerateFields, fields)
    refuse_query(request, "send the fields in the body or in the query, not in both")
    return await read_json(request, GenerateBody, fields)


def choose_format(fields: GenerateFields, accept: str) -> str:
    """A key of MEDIA_TYPES, or "stream" for an event stream, whose pictures have the format fields.format.

    Raises:
        NotAcceptable: the Accept header allows no format of this service.
        InvalidRequest: fields.format or fields.preview contradict the Accept header or each other.
    """
    if fields.format and event_stream.MEDIA_TYPE not in accept.lower():
        form = fields.format
    else:
        form = negotiate(accept, FORMATS)
    if form == "stream" and fields.format not in (None, *PICTURES):
        message = f"{fields.format} cannot be streamed: use one of {', '.join(PICTURES)}"
        raise InvalidRequest.field("format", message)
    if form != "stream" and fields.preview:
        raise InvalidRequest.field("preview", f"needs Accept: {event_stream.MEDIA_TYPE}")
    return form if form == "stream" else fields.format or form


def _lasting_format(fields: GenerateFields, accept: str) -> str:
    """A key of LASTING; raises as choose_format does."""
    missing = [
        name
        for name, given in (("deterministic", fields.deterministic), ("seed", fields.seed is not None))
        if not given
    ]
    if missing:
        raise InvalidRequest.field(missing[0], ONLY_POST.format(" and ".join(missing)))
    if fields.preview:
        raise InvalidRequest.field("preview", "GET answers with one picture: use POST for an event stream")
    if fields.format and fields.format not in LASTING:
        raise InvalidRequest.field(
            "format", f"must be one of {', '.join(LASTING)} for GET: use POST for {fields.format}"
        )
    return fields.format or negotiate(accept, {name: FORMATS[name] for name in LASTING if name in FORMATS})


async def _finish(request: Request, handler: RequestHandler, job: Job, form: str) -> Generated[Any]:
    if form in RECORDED:
        return await _record(request, handler, job, form)

    def encode(pictures: list[np.ndarray]) -> Any:
        if form == "json":
            return images.encode_base64(pictures, texts=job.recipes)
        return images.encode(pictures, form, job.recipe, columns=job.columns)

    return await unless_disconnected(request.receive, handler.generate(job, encode))


async def _record(request: Request, handler: RequestHandler, job: Job, form: str) -> Generated[bytes]:
    """Generate with all steps; raises AnswerTooLarge, or Unavailable if other requests hold the memory."""
    try:
        request.scope["at_end"].enter_context(handler.room.taken(recorded_bytes(job, form)))
    except Unavailable as error:  # counted here, because the request never reaches RequestHandler.stream
        handler.count_end(job.params, error)
        raise
    job = replace(job, params=replace(job.params, trajectory=form == "npz"))
    return await unless_disconnected(request.receive, handler.record(job, recorder(job, form)))


def _response(content: bytes, form: str, headers: dict[str, str]) -> Response:
    kind = LargeResponse if form in RECORDED else Response
    return kind(content, headers=headers, media_type=MEDIA_TYPES[form])


async def _stream(handler: RequestHandler, fields: GenerateFields, job: Job) -> Response:
    form = fields.format or "png"
    previews = check_previews(
        len(job.params.seeds), DEFAULT_PREVIEWS if fields.preview is None else fields.preview, "preview"
    )
    encode = partial(images.encode_base64, form=form)
    updates = handler.stream(job, partial(encode, texts=job.recipes), previews, encode)
    return await open_stream(picture_events(updates, job, form), seed_headers(job))


def _cache_headers(etag: str, has_format: bool, settings: Settings) -> dict[str, str]:
    reach = "private" if settings.api_keys else "public"
    headers = {"ETag": etag, "Cache-Control": f"{reach}, max-age={FRESH_SECONDS}"}
    return headers | ({} if has_format else {"Vary": "Accept"})


def as_json(generated: Generated[Any], request_id: str) -> bytes:
    """The JSON answer; generated.result holds PNGs in base64."""
    job, params = generated.job, generated.job.params
    fields = job.classes_and_seeds
    only = params.mixture(0)[0][0]
    plain = "class_to" not in fields and fields.get("class") == job.card.class_name(only) is not None
    answer = GenerateResponse(
        request_id=request_id,
        model=params.model,
        **{"class": fields.get("class")},
        class_index=only if plain else None,
        class_to=fields.get("class_to"),
        negative_class=fields.get("negative_class"),
        seed_to=int(fields["seed_to"]) if "seed_to" in fields else None,
        between=float(fields["between"]) if "between" in fields else None,
        steps=params.num_steps,
        sampler=params.sampler,
        spacing=params.spacing,
        guidance=params.guidance_scale,
        guidance_interval=params.guidance_interval,
        strength=params.strength if params.image else None,
        images=[
            GeneratedImage(seed=seed, png_base64=picture, **{"class": job.class_text(index) or None})
            for index, (seed, picture) in enumerate(zip(params.seeds, generated.result, strict=True))
        ],
        timings=generated.timings,
    )
    return answer.model_dump_json(by_alias=True).encode()
