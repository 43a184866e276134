"""Routes for operators, which change the running service. They exist only if an admin key is set."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from models.files import CONFIG, CONSTANTS, GRAPH, WEIGHTS
from service.errors import (
    BodyTooLarge,
    CompressedBody,
    InvalidRequest,
    RequestTimeout,
    SwapUnderWay,
    Unauthorized,
    Unavailable,
    UnknownModel,
    echo,
)
from service.paths import ADMIN_FOLDER
from service.web.bodies import read_json, refuse_query
from service.web.dialects import OWN, document
from service.web.generation import RequestHandler
from service.web.info import describe_model
from service.web.schemas import Fields, ModelInfo

router = APIRouter(prefix=ADMIN_FOLDER.rstrip("/"), tags=["Admin"])
MAX_NAME = 200  # characters


class SwapBody(BaseModel):
    """What a model shall serve from now on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    checkpoint: str = Field(max_length=MAX_NAME, description="A folder in DIFFUSION_CHECKPOINTS.")


PROBLEMS = (
    Unauthorized, UnknownModel, RequestTimeout, SwapUnderWay, BodyTooLarge, CompressedBody, InvalidRequest,
    Unavailable,
)  # fmt: skip
BODY: dict[str, Any] = {"content": {"application/json": {"schema": SwapBody.model_json_schema()}}, "required": True}


@router.put(
    "/models/{model}",
    responses=document(OWN, PROBLEMS),
    openapi_extra={"requestBody": BODY},
    summary="Serve other weights",
)
async def swap_model(request: Request, model: str) -> ModelInfo:
    """The answer comes once every request that is sent from then on gets the new weights.

    Requests that are in keep the weights that they began with. A checkpoint that cannot be served changes nothing.
    """
    handler: RequestHandler = request.app.state.handler
    handler.card(model)
    refuse_query(request)
    asked = await read_json(request, SwapBody, Fields(list(SwapBody.model_fields), {}))
    folder = checkpoint_folder(handler.settings.checkpoints, asked.checkpoint)
    return describe_model(await handler.engine.swap(model, str(folder)))


def checkpoint_folder(root: Path, name: str) -> Path:
    """A folder under root that contains a checkpoint; links must not lead out of root.

    Raises:
        InvalidRequest: there is no such folder.
    """
    wanted = Path(name)
    try:
        base = root.resolve()
        folder = (base / wanted).resolve()
        places = [folder, *((folder / file).resolve() for file in (CONFIG, WEIGHTS, GRAPH, CONSTANTS))]
        inside = all(place.is_relative_to(base) for place in places) and folder != base
        if inside and not wanted.is_absolute() and ".." not in wanted.parts and (folder / CONFIG).is_file():
            return folder
    except (OSError, ValueError, RuntimeError):  # an invalid file name, or a loop of links
        pass
    message = f"must be a folder in DIFFUSION_CHECKPOINTS with a {CONFIG}, not {echo(name)}"
    raise InvalidRequest.field("checkpoint", message)
