"""The OpenAI Images API: a prompt is a class name or an index.

https://developers.openai.com/api/reference/resources/images
"""

import time
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from service.errors import InvalidRequest, UnknownModel, echo
from service.web import event_stream, images
from service.web.bodies import read_json, refuse_query
from service.web.dialects import OPENAI, document
from service.web.event_stream import NO_TOKENS, open_stream, picture_events
from service.web.generation import RequestHandler
from service.web.job import Job
from service.web.leaving import unless_disconnected
from service.web.resolve import check_previews
from service.web.routes.answers import answer_headers, seed_headers
from service.web.schemas import (
    Between,
    ClassLabel,
    ClassTo,
    Deadline,
    Fields,
    GenerateFields,
    Guidance,
    Limits,
    NegativeClass,
    Sampler,
    Seed,
    SeedTo,
    Spacing,
    Steps,
    Whole,
)

router = APIRouter(prefix="/v1", tags=["OpenAI Images"])

# OpenAI's or diffusers' name by the name of /generate.
OWN_NAMES = {
    "class": "prompt",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "preview": "partial_images",
    "negative_class": "negative_prompt",
    "class_to": "prompt_to",
}
# Quality of /generate by OpenAI's. "auto" is as good as none, so it may be combined with steps and the like.
OWN_QUALITIES = {"low": "draft", "medium": "default", "standard": "default"} | dict.fromkeys(
    ("high", "hd", "xhigh", "max"), "best"
)


class ImageRequest(BaseModel):
    """Fields of OpenAI's, then the ones that diffusion models have beside them (extra_body in its SDK).

    What cannot be honoured is refused, not ignored; only hints about taste and the caller have no effect.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: Annotated[
        ClassLabel, Field(description="Class name or index, or a mixture such as 3:0.5,8:0.5.", examples=["3"])
    ]
    model: Annotated[str, Field(description="Name of a model, see /v1/models.", examples=["dit"])]
    n: Whole | None = Field(None, description="Images.")
    size: str | None = Field(None, max_length=20, description="auto, or the model's own size.", examples=["auto"])
    response_format: Literal["b64_json"] | None = Field(None, description="There are no urls here.")
    output_format: Literal["png", "webp", "jpeg"] | None = None
    output_compression: Annotated[Whole, Field(ge=0, le=100)] | None = Field(
        None, description="Quality of webp and jpeg. Default: webp without loss, jpeg 95."
    )
    stream: bool | None = None
    partial_images: Whole | None = Field(None, description="Previews of each image, in a stream.")
    background: Literal["auto", "opaque"] | None = None
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = Field(
        None, description="low is the model's draft, medium and standard its default, all above its best."
    )
    style: Literal["vivid", "natural"] | None = None
    moderation: Literal["auto", "low"] | None = None
    user: str | None = Field(None, max_length=1000)
    safety_identifier: str | None = Field(None, max_length=1000)

    num_inference_steps: Steps = None
    guidance_scale: Guidance = None
    sampler: Sampler = None
    spacing: Spacing = None
    seed: Seed = None
    seed_to: SeedTo = None
    between: Between = None
    negative_prompt: NegativeClass = None
    prompt_to: ClassTo = None
    deadline_ms: Deadline = None
    deterministic: bool | None = None

    def own(self) -> GenerateFields:
        """This request as fields of /generate."""
        same = {"model", "n", "sampler", "spacing", "seed", "seed_to", "between", "deadline_ms", "deterministic"}
        fields = {
            "class": self.prompt,
            "class_to": self.prompt_to,
            "negative_class": self.negative_prompt,
            "steps": self.num_inference_steps,
            "guidance": self.guidance_scale,
            "preview": self.partial_images,
            "quality": OWN_QUALITIES.get(self.quality or ""),
        } | self.model_dump(include=same)
        return GenerateFields.model_validate(fields)


FIELD_NAMES = list(ImageRequest.model_fields)
PROMPT = "the name of a class, its index, or a mixture such as 3:0.5,8:0.5"


def fields_of(handler: RequestHandler, names: list[str]) -> Fields:
    """What error messages say of a body's fields."""
    needs = {"model": f"one of {', '.join(handler.names)}", "prompt": PROMPT}
    return Fields(names, own_limits(handler.limits), needs)


def own_limits(limits: Limits) -> Limits:
    """The limits of /generate under the names of this API, and those of its own fields."""
    return {OWN_NAMES.get(name, name): limit for name, limit in limits.items()} | {"output_compression": (0, 100)}


class ImageDatum(BaseModel):
    b64_json: str
    seed: int


class ImagesResponse(BaseModel):
    """The answer of /v1/images/generations; seed and timings are not OpenAI's."""

    created: int
    data: list[ImageDatum]
    output_format: str
    size: str
    quality: str = "auto"
    background: str = "opaque"
    usage: dict[str, Any] = NO_TOKENS


class Model(BaseModel):
    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str


class ModelPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


EVENTS = {"content": {event_stream.MEDIA_TYPE: {"schema": event_stream.EVENT_SCHEMA}}}
BODY = {
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ImageRequest"}}},
    "required": True,
}


@router.post(
    "/images/generations",
    response_model=ImagesResponse,
    responses={200: EVENTS, **document(OPENAI)},
    openapi_extra={"requestBody": BODY},
    summary="Create images",
)
async def create_image(request: Request) -> Response:
    """With stream, the answer is events: image_generation.partial_image and image_generation.completed."""
    refuse_query(request)
    handler: RequestHandler = request.app.state.handler
    body = await read_json(request, ImageRequest, fields_of(handler, FIELD_NAMES))
    return await draw(request, body, "image_generation")


async def draw(request: Request, body: ImageRequest, kind: str) -> Response:
    """Generate and answer in OpenAI's format; kind: prefix of the event names, see picture_events.

    Raises:
        InvalidRequest: names the field as this API does.
    """
    try:
        return await _draw(request, body, kind)
    except InvalidRequest as error:
        raise error.renamed(OWN_NAMES) from error


async def _draw(request: Request, body: ImageRequest, kind: str) -> Response:
    handler: RequestHandler = request.app.state.handler
    job = await handler.resolve(body.own(), transparent=True)
    _check_picture(body, job)
    form, quality = body.output_format or "png", body.quality or "auto"
    encode = partial(images.encode_base64, form=form, quality=body.output_compression)
    encode_last = partial(encode, texts=job.recipes)
    if body.stream:
        previews = check_previews(len(job.params.seeds), body.partial_images or 0, "partial_images")
        updates = handler.stream(job, encode_last, previews, encode)
        return await open_stream(picture_events(updates, job, form, quality, kind), seed_headers(job))
    generated = await unless_disconnected(request.receive, handler.generate(job, encode_last))
    pairs = zip(generated.result, job.params.seeds, strict=True)
    data = [ImageDatum(b64_json=picture, seed=seed) for picture, seed in pairs]
    answer = ImagesResponse(created=int(time.time()), data=data, output_format=form, size=job.size, quality=quality)
    return JSONResponse(answer.model_dump(), headers=answer_headers(generated))


def _check_picture(body: ImageRequest, job: Job) -> None:
    """Raises InvalidRequest for a size, previews or compression that the answer cannot have."""
    if body.size not in (None, "auto", job.size):
        message = f"must be {job.size}, which is the size of {job.params.model}, or auto, not {echo(body.size)}"
        raise InvalidRequest.field("size", message)
    if body.partial_images and not body.stream:
        raise InvalidRequest.field("partial_images", "needs stream: true")
    if body.output_compression is not None and body.output_format not in ("webp", "jpeg"):
        raise InvalidRequest.field(
            "output_compression", "needs output_format: webp or jpeg, because a png has no loss"
        )


@router.get("/models", summary="List the models", responses=document(OPENAI, ()))
async def list_models(request: Request) -> ModelPage:
    return ModelPage(data=[_model(request, name) for name in request.app.state.handler.names])


@router.get("/models/{model}", summary="One model", responses=document(OPENAI, (UnknownModel,)))
async def retrieve_model(request: Request, model: str) -> Model:
    request.app.state.handler.card(model)
    return _model(request, model)


def _model(request: Request, name: str) -> Model:
    """created is the start of this process, because checkpoints have no date."""
    return Model(id=name, created=request.app.state.started, owned_by=request.app.title)
