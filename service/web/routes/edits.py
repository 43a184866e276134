"""Images that start from others, in the OpenAI Images API: forms with files.

https://developers.openai.com/api/reference/resources/images
"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field
from starlette.responses import Response

from service.web.bodies import read_form, refuse_query
from service.web.dialects import OPENAI, document
from service.web.generation import RequestHandler
from service.web.routes.openai import EVENTS, ImageRequest, ImagesResponse, draw, fields_of
from service.web.schemas import ClassLabel, GenerateFields, Strength

router = APIRouter(prefix="/v1", tags=["OpenAI Images"])

FILE = Field(json_schema_extra={"format": "binary"})


class EditRequest(ImageRequest):
    """ImageRequest with an image. What is transparent in its mask, or without one in itself, is drawn anew.

    Without either all of it is, as far from the image as strength says.
    """

    model_config = ConfigDict(strict=False)  # a form has text only

    prompt: Annotated[ClassLabel | None, Field(description="Class name or index. Default: none.")] = None  # pyright: ignore[reportIncompatibleVariableOverride]
    image: Annotated[bytes, FILE, Field(description="A PNG, WebP or JPEG of the model's own size.")]
    mask: Annotated[bytes | None, FILE, Field(description="A PNG that is transparent where to draw.")] = None
    strength: Strength = None
    input_fidelity: Literal["high", "low"] | None = None  # a hint; strength says it

    def own(self) -> GenerateFields:
        files = {"image": self.image, "mask": self.mask, "strength": self.strength}
        return super().own().model_copy(update=files)


FIELD_NAMES = list(EditRequest.model_fields)
SCHEMA = {"schema": {"$ref": "#/components/schemas/EditRequest"}}
ROUTE: dict[str, Any] = {
    "response_model": ImagesResponse,
    "responses": {200: EVENTS, **document(OPENAI)},
    "openapi_extra": {"requestBody": {"content": {"multipart/form-data": SCHEMA}, "required": True}},
}


@router.post("/images/variations", summary="Images like another one", **ROUTE)
async def vary_image(request: Request) -> Response:
    """All that is asked of edits may be asked here."""
    return await edit_image(request)


@router.post("/images/edits", summary="Complete or change an image", **ROUTE)
async def edit_image(request: Request) -> Response:
    """What is opaque in the mask stays as it is. With stream, the events are those of image_edit."""
    refuse_query(request)
    handler: RequestHandler = request.app.state.handler
    body = await read_form(request, EditRequest, fields_of(handler, FIELD_NAMES))
    return await draw(request, body, "image_edit")
