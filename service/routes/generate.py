"""POST /generate."""

import asyncio
import json
from collections.abc import Coroutine
from contextlib import suppress
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, Query, Request
from starlette.responses import Response

from service.errors import CLIENT_CLOSED_REQUEST, InvalidRequest, NotAcceptable, document
from service.generation import Generated, Generator
from service.images import MEDIA_TYPES
from service.schemas import GenerateFields

T = TypeVar("T")
router = APIRouter()

BINARY = {"schema": {"type": "string", "format": "binary"}}
ANSWER = {
    "description": "The image; several as a grid, in JSON as a list, in npy as an array [n, H, W, C] of bytes",
    "content": {kind: BINARY for name, kind in MEDIA_TYPES.items() if name != "json"}
    | {"application/json": {"schema": {"$ref": "#/components/schemas/GenerateResponse"}}},
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
    body: Annotated[GenerateFields | None, Body()] = None,
) -> Response:
    """Sample images of one class. Fields come in the query, in a JSON body, or in both as long as they agree."""
    generator: Generator = request.app.state.generator
    _refuse_repeats([name for name, _ in request.query_params.multi_items()], "query")
    if body is not None:  # parsed once more, because pydantic sees only the last of two equal keys
        pairs = json.loads(await request.body(), object_pairs_hook=lambda pairs: pairs)
        _refuse_repeats([name for name, _ in pairs], "body")
    fields = merge(query, body)
    form = fields.format or negotiate(request.headers.get("accept", ""))
    params = generator.resolve(fields)
    request_id = request.scope["request_id"]
    etag = (
        generator.etag(params, form) if fields.deterministic and fields.seed is not None and form != "json" else ""
    )
    if etag and etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": etag})
    deadline = None if fields.deadline_ms is None else fields.deadline_ms / 1000
    generated = await unless_disconnected(request, generator.generate(params, form, request_id, deadline))
    if generated is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    headers = _headers(generated) | ({"ETag": etag, "Cache-Control": "no-cache"} if etag else {})
    return Response(generated.body, headers=headers, media_type=MEDIA_TYPES[form])


def merge(query: GenerateFields, body: GenerateFields | None) -> GenerateFields:
    """Raises InvalidRequest where both give a field and differ."""
    given = {} if body is None else body.model_dump(exclude_none=True, by_alias=True)
    for name, value in query.model_dump(exclude_none=True, by_alias=True).items():
        if given.setdefault(name, value) != value:
            raise InvalidRequest.field(name, f"the query says {value!r:.80}, the body {given[name]!r:.80}")
    return GenerateFields.model_validate(given)


def negotiate(accept: str) -> str:
    """The format for an Accept header (RFC 9110, section 12.5.1).

    A format's quality is that of the most specific range that holds it; the best one wins, and among equals the
    one that the header names first, then the order of MEDIA_TYPES.

    Raises:
        NotAcceptable: no format of the service has a quality above 0.
    """
    if not accept.strip():
        return "png"
    ranges = _parse_accept(accept)
    best, quality = "", 0.0
    for named in [*(kind for kind, _ in ranges), "*/*"]:
        for form, media_type in MEDIA_TYPES.items():
            if _holds(named, media_type) and (q := _quality(ranges, media_type)) > quality:
                best, quality = form, q
    if not best:
        raise NotAcceptable(f"Accept: none of {accept!r:.200}; this service has {', '.join(MEDIA_TYPES.values())}")
    return best


def _holds(media_range: str, media_type: str) -> bool:
    return media_range in (media_type, "*/*", media_type.split("/")[0] + "/*")


def _quality(ranges: list[tuple[str, float]], media_type: str) -> float:
    holding = [(kind.count("*"), -quality) for kind, quality in ranges if _holds(kind, media_type)]
    return -min(holding)[1] if holding else 0.0


def _parse_accept(accept: str) -> list[tuple[str, float]]:
    """Media ranges and their q in 0..1; a q that is no number counts as 1."""
    ranges = []
    for part in filter(None, (part.strip() for part in accept.split(","))):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                with suppress(ValueError):
                    quality = float(parameter[2:])
        ranges.append((kind, min(max(quality, 0.0), 1.0)))
    return ranges


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Await work, but cancel it and return None as soon as the client has gone."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _refuse_repeats(names: list[str], place: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest.field(name, f"given more than once in the {place}")


def _headers(generated: Generated) -> dict[str, str]:
    timings = generated.timings.model_dump()
    simulated = {"X-Simulated": "true"} if generated.simulated else {}
    return simulated | {
        "X-Seed": ",".join(str(seed) for seed in generated.params.seeds),
        "Server-Timing": ", ".join(f"{name};dur={1000 * value:.3f}" for name, value in timings.items()),
        "Cache-Control": "no-store",
    }
