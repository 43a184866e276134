"""The pydantic models of requests and answers; their field descriptions go into the OpenAPI document."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from models.seeds import SEED_BITS
from service.settings import MAX_GUIDANCE
from service.web.classes import MAX_WEIGHT, check_shape
from service.web.uploads import decode

Format = Literal["png", "webp", "jpeg", "npy", "npz", "json", "apng", "webp-animation"]
MAX_SEED = (1 << SEED_BITS) - 1
MIN_STRENGTH = 0.01  # as in models/samplers.py, which imports torch

Limits = dict[str, tuple[float, float]]  # the least and the greatest number that a field takes, by its name


def limits(max_steps: int, max_images: int) -> Limits:
    """Limits of the fields of /generate. resolve.py checks them, and the OpenAPI document states them."""
    return {
        "steps": (1, max_steps),
        "n": (1, max_images),
        "guidance": (0.0, MAX_GUIDANCE),
        "guidance_low": (0.0, 1.0),
        "guidance_high": (0.0, 1.0),
        "seed": (0, MAX_SEED),
        "seed_to": (0, MAX_SEED),
        "between": (0.0, 1.0),
        "deadline_ms": (1, 3_600_000),
        "preview": (0, 64),
        "strength": (MIN_STRENGTH, 1.0),
    }


def allowed(limit: tuple[float, float]) -> str:
    """The limit in words; bounds of type int mean that the field takes whole numbers only."""
    kind = "a whole number" if isinstance(limit[0], int) else "a number"
    low, high = (str(bound) if isinstance(bound, int) else f"{bound:g}" for bound in limit)
    return f"{kind} from {low} to {high}"


class Fields(NamedTuple):
    """Names and limits of an API's fields, for error messages; needs: what is allowed for required ones."""

    names: list[str]
    limits: Limits
    needs: Mapping[str, str] = {}


def _digits(value: Any) -> Any:
    """Check digits in a query, which has text only; pydantic would also accept "1_0", " 5" and "5.0"."""
    if isinstance(value, str) and not re.fullmatch("-?[0-9]{1,30}", value):
        raise ValueError  # dialects.py makes the message from the field's limits
    return value


def _decimal(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[-+]?[0-9.]{1,30}(e[-+]?[0-9]{1,3})?", value):
        raise ValueError
    return value


def _class(value: Any) -> Any:
    if isinstance(value, bool | float | list | dict):
        raise ValueError("must be the name of a class, or its index as a whole number")
    return value


Whole = Annotated[int, BeforeValidator(_digits)]
Number = Annotated[float, BeforeValidator(_decimal)]
# A number is an index and text is a name, so that a class that is called "2" can be asked for either way.
ClassLabel = Annotated[
    int | str,
    BeforeValidator(_class),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 0}]}),
]

WEIGHTS: dict[str, Any] = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_WEIGHT},
}
ONE_CLASS: list[dict[str, Any]] = [{"type": "string"}, {"type": "integer", "minimum": 0}, WEIGHTS]
LISTED = {"type": "array", "minItems": 1, "items": {"anyOf": ONE_CLASS}}
Classes = Annotated[Any, BeforeValidator(check_shape), WithJsonSchema({"anyOf": [*ONE_CLASS, LISTED]})]
ClassOrMixture = Annotated[
    Any, BeforeValidator(partial(check_shape, several=False)), WithJsonSchema({"anyOf": ONE_CLASS})
]

Steps = Annotated[Whole | None, Field(description="Default: the model's; of another sampler 10, of consistency 2.")]
Sampler = Annotated[str | None, Field(description="See /models for those of each model. Default: the model's.")]
Spacing = Annotated[str | None, Field(description="Of the noise times, one of five. Default: the model's.")]
Quality = Literal["draft", "default", "best"]
Guidance = Annotated[Number | None, Field(description="Guidance scale; 1 turns guidance off.")]
File = Annotated[
    bytes | None,
    BeforeValidator(decode),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]
Strength = Annotated[
    Number | None,
    Field(description="How far from the image to go: the noise time to start at. Default: 0.6, with a mask 1."),
]
Seed = Annotated[Whole | None, Field(description="Default: random; X-Seed tells it.")]
NegativeClass = Annotated[
    ClassLabel | None, Field(description="A class to lead away from, in place of no class. Needs guidance.")
]
ClassTo = Annotated[
    ClassLabel | None,
    Field(description="n images lead evenly from class to this class or mixture, all from the noise of seed."),
]
SeedTo = Annotated[
    Whole | None, Field(description="n images lead from the noise of seed to that of this one, on an arc.")
]
Between = Annotated[
    Number | None, Field(description="One image, so far on the way to class_to and seed_to: 0 is the first end.")
]
Deadline = Annotated[
    Whole | None,
    Field(description="Milliseconds until the last step. 503 if that cannot be met, 504 once it has passed."),
]


class GenerateFields(BaseModel):
    """The fields of /generate. This class reads the query, where all values are text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(None, description="Name of a model, see /models.", examples=["dit"])
    class_: ClassLabel | None = Field(
        None,
        alias="class",
        description="A class name, or a mixture such as 3:0.5,8:0.5. A JSON number, or digits that name no class, "
        "are an index. JSON may have a mixture as an object; a list has one image each. An image needs none.",
        examples=["3"],
    )
    negative_class: NegativeClass = None
    class_to: ClassTo = None
    image: File = Field(None, description="A file of the model's size to start from, or with a mask to complete.")
    mask: File = Field(None, description="A picture of the same size: white may change, black is kept as it is.")
    strength: Strength = None
    quality: Quality | None = Field(
        None, description="What stands for steps, sampler, spacing and guidance, instead of them; see /models."
    )
    steps: Steps = None
    sampler: Sampler = None
    spacing: Spacing = None
    guidance: Guidance = None
    guidance_low: Number | None = Field(None, description="Guide only from this noise time (0 clean) ...")
    guidance_high: Number | None = Field(None, description="... to this one (1 noise).")
    seed: Seed = None
    seed_to: SeedTo = None
    between: Between = None
    n: Whole | None = Field(None, description="Images; a picture shows several as a grid.")
    deterministic: bool | None = Field(
        None, description="The same bytes whatever else runs. Every step then costs as much as a full one."
    )
    deadline_ms: Deadline = None
    preview: Whole | None = Field(
        None,
        description="Previews of each image in an event stream (Accept: text/event-stream), none of its last step. "
        "Default: 4.",
    )
    format: Format | None = Field(
        None, description="Default: by the Accept header; png without one. npz and animations have every step."
    )


class GenerateBody(GenerateFields):
    """The fields of /generate as JSON, where "3" is no number and 1 no boolean."""

    model_config = ConfigDict(strict=True)

    class_: Classes = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        None, alias="class", description=GenerateFields.model_fields["class_"].description, examples=["3"]
    )
    class_to: ClassOrMixture = Field(None, description=GenerateFields.model_fields["class_to"].description)


FIELD_NAMES = [field.alias or name for name, field in GenerateFields.model_fields.items()]


class Timings(BaseModel):
    """Seconds."""

    queue: float
    denoise: float
    encode: float


class GeneratedImage(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    seed: int
    class_: str | None = Field(alias="class")  # a mixture as text; null: none was asked for
    png_base64: str


class GenerateResponse(BaseModel):
    """The JSON answer of /generate; every value that was used, given or not."""

    model_config = ConfigDict(populate_by_name=True)

    request_id: str
    model: str
    class_: str | None = Field(alias="class")  # as it may be asked for again; null: none was asked for
    class_index: int | None  # null: none or several
    class_to: str | None
    negative_class: str | None
    seed_to: int | None
    between: float | None
    steps: int
    sampler: str
    spacing: str
    guidance: float
    guidance_interval: tuple[float, float]
    strength: float | None  # null: there was no image
    images: list[GeneratedImage]
    timings: Timings


class ModelInfo(BaseModel):
    """One served model."""

    name: str
    architecture: str
    parameters: int
    image_shape: tuple[int, int, int]
    class_names: list[str]
    samplers: list[str]
    defaults: dict[str, Any]
    qualities: dict[str, dict[str, Any]]  # what draft, default and best stand for
    guidance_range: tuple[float, float] | None  # guidance scales that cost no second row; null: none
    device: str
    dtype: str
    backend: str  # that runs the network: torch or openvino
    max_rows: int | None
    deterministic: bool | None  # whether the deterministic mode works here; null until model and backend are final
    weights_sha256: str
    version: int  # of the weights: 1 at the start, one more with each swap


class ModelList(BaseModel):
    models: list[ModelInfo]


class StepProfile(BaseModel):
    """What the start found out about a model on this device."""

    max_rows: int  # forward rows of a step; lower after the device ran out of memory
    deterministic_rows: int | None  # of every step in the deterministic mode; null where that does not work here
    weight: float
    step_seconds: dict[int, float]  # by row count


class ServiceInfo(BaseModel):
    """The configuration in force."""

    versions: dict[str, str]
    device: str
    settings: dict[str, Any]  # DIFFUSION_ variables and defaults; secrets are masked
    shed_load: bool
    profiles: dict[str, StepProfile]  # of the models that are warm


class Health(BaseModel):
    status: Literal["ok", "unavailable"]
    reason: str = ""
