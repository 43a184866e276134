"""What clients send and receive."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from kernels.philox import SEED_BITS

SAMPLER_NAMES = Literal["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "euler", "ab2"]
Format = Literal["png", "webp", "jpeg", "npy", "json"]
MAX_SEED = (1 << SEED_BITS) - 1
MAX_GUIDANCE = 20.0
MAX_PREVIEWS = 64


# The bounds belong to the number inside, because null is allowed everywhere and means the default.
Count = Annotated[int, Field(ge=1)]
Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Previews = Annotated[int, Field(ge=0, le=MAX_PREVIEWS)]

Steps = Annotated[
    Annotated[int, Field(ge=1, le=1000)] | None, Field(description="Denoising steps; default: the model's.")
]
Guidance = Annotated[
    Annotated[float, Field(ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)] | None,
    Field(description="Guidance scale; 1 is off."),
]
Seed = Annotated[
    Annotated[int, Field(ge=0, le=MAX_SEED)] | None, Field(description="Default: random; X-Seed tells it.")
]
Deadline = Annotated[
    Annotated[int, Field(ge=1, le=3_600_000)] | None,
    Field(description="To the last step. 503 if it cannot be met, 504 if it was not."),
]


def _class_as_text(value: Any) -> Any:
    """JSON clients may send a class index as a number."""
    if isinstance(value, bool | float | list | dict):
        raise ValueError("a class name or an index")
    return str(value) if isinstance(value, int) else value


class GenerateFields(BaseModel):
    """The fields of /generate in the query, where all values are text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(None, description="Name of a model, see /models. Required.", examples=["dit"])
    class_: Annotated[str | None, BeforeValidator(_class_as_text)] = Field(
        None, alias="class", description="Class name or index. Required.", examples=["3"]
    )
    steps: Steps = None
    sampler: SAMPLER_NAMES | None = Field(None, description="Default: the model's.")
    guidance: Guidance = None
    guidance_low: Unit | None = Field(None, description="Guide only from this noise time (0 clean) ...")
    guidance_high: Unit | None = Field(None, description="... to this one (1 noise).")
    seed: Seed = None
    n: Count | None = Field(None, description="Images; pictures show several as a grid.")
    deterministic: bool | None = Field(
        None, description="The same bytes in any company, at the price of full steps; with a seed also an ETag."
    )
    deadline_ms: Deadline = None
    preview: Previews | None = Field(
        None, description="Pictures of each image on its way, in an event stream; default 4."
    )
    format: Format | None = Field(None, description="Default: by the Accept header, png without one.")


class GenerateBody(GenerateFields):
    """The fields of /generate as JSON, where "3" is no number and 1 no boolean."""

    model_config = ConfigDict(strict=True)


FIELD_NAMES = [field.alias or name for name, field in GenerateFields.model_fields.items()]


class Timings(BaseModel):
    """Seconds."""

    queue: float
    denoise: float
    encode: float


class GeneratedImage(BaseModel):
    seed: int
    png_base64: str


class GenerateResponse(BaseModel):
    """The JSON answer of /generate; every value that was used, given or not."""

    model_config = ConfigDict(populate_by_name=True)

    request_id: str
    model: str
    class_: str = Field(alias="class")
    class_index: int
    steps: int
    sampler: str
    guidance: float
    guidance_interval: tuple[float, float]
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
    device: str
    dtype: str
    max_rows: int | None
    deterministic: bool | None  # whether the deterministic mode works here; null until the model is warm
    weights_sha256: str


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
