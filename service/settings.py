"""Configuration: the environment, read once, in this file only."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as SettingsSourceError

from models.files import CONFIG, default_checkpoints
from models.names import check_model_name
from service.api_keys import MIN_LENGTH, AdminKey, ApiKey, ApiKeys

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PREFIX = "DIFFUSION_"
# What Kubernetes sets in every pod for a Service of the same namespace named diffusion, or diffusion-...
SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$")
LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")
MAX_GUIDANCE = 20.0
# Scheme, host and port, as browsers send them; * is everybody.
Origins = list[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]]
AnyCase = BeforeValidator(lambda given: given.strip().lower() if isinstance(given, str) else given)


class SettingsError(ValueError):
    """Settings that cannot be used, in one sentence."""


class Simulation(BaseModel):
    """A step of B rows costs t0_ms + t1_ms * B, and nothing is computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    t0_ms: float = Field(ge=0, allow_inf_nan=False)
    t1_ms: float = Field(ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _takes_time(self) -> "Simulation":
        if self.t0_ms + self.t1_ms <= 0:
            raise ValueError("a simulated step must take time: give t0_ms or t1_ms above 0")
        return self


class ModelEntry(BaseModel):
    """Where one served model comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: Path | None = None  # folder with model.safetensors and config.json
    architecture: str | None = None  # package.module:Class; overrides the checkpoint's own
    config: dict[str, Any] | None = None  # instead of a checkpoint: ModelConfig fields, with fresh weights
    simulate: Simulation | None = None  # instead of the network; the checkpoint or config still names the classes
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)  # share of the device under load

    @model_validator(mode="after")
    def _one_source(self) -> "ModelEntry":
        if (self.checkpoint is None) == (self.config is None):
            raise ValueError("give either checkpoint or config")
        return self


class Settings(BaseSettings):
    """Every setting is an environment variable, DIFFUSION_ and its name; nested ones are JSON.

    A variable with an empty value counts as unset, because Compose writes one for ${X:-}.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True, env_ignore_empty=True
    )

    checkpoints: Path = Field(default_factory=default_checkpoints)  # each folder in it with a config.json is served
    models: dict[str, ModelEntry] = {}  # served instead of checkpoints, by name
    device: Annotated[Literal["auto", "cpu", "cuda"], AnyCase] = "auto"
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16", "int8"], AnyCase] = "auto"  # of the weights
    backend: Annotated[Literal["auto", "torch", "openvino"], AnyCase] = "auto"  # that runs the networks on a CPU
    cuda_graphs: bool = True  # replay steps as CUDA graphs; false for a network that cannot be captured
    threads: int | None = Field(default=None, ge=1)  # CPU threads of the engine; default: see service/cgroup.py
    max_rows: int | None = Field(default=None, ge=2, le=4096)  # forward rows a step; default: 8, on a GPU measured
    max_requests: int = Field(default=256, ge=1)  # waiting requests a model
    max_evaluations: int = Field(default=50_000, ge=1)  # waiting model evaluations a model
    shed_load: bool | None = None  # refuse what would be late, while an overload lasts; default: not on a CPU
    max_steps: int = Field(default=250, ge=1, le=1000)  # of one request
    max_images: int = Field(default=16, ge=1, le=1024)  # of one request
    drain_seconds: float = Field(default=30.0, ge=0, allow_inf_nan=False)  # for accepted work at shutdown
    heartbeat_seconds: float = Field(default=60.0, gt=0, allow_inf_nan=False)  # silence that means a dead engine
    api_keys: ApiKeys = {}  # by name; without any, the service is open
    admin_key: AdminKey | None = None  # for /admin, which is not there without it
    cors_origins: Origins = []  # whose pages may call this service from a browser
    http_workers: int | None = Field(default=None, ge=1, le=64)  # processes; default: see service/supervisor.py
    metrics_port: int | None = Field(default=None, ge=1, le=65535)  # of /metrics; default: the main port
    max_connections: int = Field(default=1024, ge=1)
    header_seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)  # for a request head to arrive
    body_seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)  # for a body to arrive
    stream_seconds: float = Field(default=120.0, gt=0, allow_inf_nan=False)  # for a client to take what was sent
    keep_alive_seconds: int = Field(default=5, ge=1)  # for an idle connection
    log_level: Annotated[Literal["debug", "info", "warning", "error"], AnyCase] = "info"
    log_format: Annotated[Literal["text", "json"], AnyCase] = "text"
    otel: bool = False  # send OpenTelemetry spans, where the OTEL_ variables say; needs the otel extra

    @model_validator(mode="after")
    def _admin_has_a_key_of_its_own(self) -> "Settings":
        if self.admin_key in [known.key for known in self.api_keys.values()]:
            raise ValueError("DIFFUSION_ADMIN_KEY must be none of DIFFUSION_API_KEYS")
        return self


def load_settings() -> Settings:
    """Settings from the environment.

    Raises:
        SettingsError: a value out of range, or a DIFFUSION_ variable that does not exist.
    """
    if os.environ.get(f"{PREFIX}API_KEYS") == "":  # whoever meant to close the service must not open it
        raise SettingsError(
            f"setting {PREFIX}API_KEYS: empty: give a key of at least {MIN_LENGTH} characters, or unset it"
        )
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        advice = _service_link(unknown[0]) or f"use one of {', '.join(sorted(known))}"
        raise SettingsError(f"unknown setting {unknown[0]}: {advice}")
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        setting, *inside = (str(part) for part in first["loc"]) if first["loc"] else ("",)
        name = f"{PREFIX}{setting.upper()}"
        where = ".".join([name, *inside])
        raise SettingsError(f"setting {where}: {_service_link(name) or _advice(first)}") from error
    except SettingsSourceError as error:  # a nested setting that is no JSON
        field = re.search(r'field "(\w+)"', str(error))
        name = f"setting {PREFIX}{field[1].upper()}" if field else "a setting"
        raise SettingsError(f"{name}: not valid JSON: {error.__cause__}") from error


def _advice(error: "ErrorDetails") -> str:
    """What pydantic says, and where it says too little, what is allowed."""
    if error["type"] == "extra_forbidden":
        entry = ApiKey if error["loc"][0] == "api_keys" else ModelEntry
        fields = (Simulation if "simulate" in error["loc"][2:-1] else entry).model_fields
        return f"unknown field: use one of {', '.join(sorted(fields))}"
    return error["msg"].replace("items after validation", "characters")  # only keys have a least length


def model_entries(settings: Settings) -> dict[str, ModelEntry]:
    """The models that are configured, or else every checkpoint in the checkpoints folder.

    Raises:
        SettingsError: there is none, or one has a name that no URL can carry.
    """
    if settings.models:
        return _check_names(settings.models)
    folders = sorted(path.parent for path in settings.checkpoints.glob(f"*/{CONFIG}"))
    # file managers and rsync leave .Trash-0 and half a copy in .dit.tmp
    entries = {path.name: ModelEntry(checkpoint=path) for path in folders if not path.name.startswith(".")}
    if not entries:
        raise SettingsError(
            f"no checkpoint in {settings.checkpoints.resolve()}: {_why_none(settings.checkpoints)}. "
            "Set DIFFUSION_CHECKPOINTS to another folder, or name the models in DIFFUSION_MODELS"
        )
    return _check_names(entries)


def choose_models(settings: Settings, names: Sequence[str]) -> Settings:
    """The settings with these models alone. Raises SettingsError: there is no such model."""
    entries = model_entries(settings)
    if unknown := [name for name in names if name not in entries]:
        raise SettingsError(f"no model {unknown[0]}: use some of {', '.join(entries)}")
    return settings.model_copy(update={"models": {name: entries[name] for name in names}})


def _why_none(folder: Path) -> str:
    try:
        closed = [
            str(path) for path in folder.iterdir() if path.is_dir() and not os.access(path, os.R_OK | os.X_OK)
        ]
    except OSError as error:
        return f"the folder cannot be read: {error.strerror}"
    return f"{closed[0]} cannot be read" if closed else f"each model needs a folder in it with {CONFIG}"


def _check_names(entries: dict[str, ModelEntry]) -> dict[str, ModelEntry]:
    for name in entries:
        try:
            check_model_name(name)
        except ValueError as error:
            raise SettingsError(str(error)) from error
    return entries


def _service_link(name: str) -> str:
    """What to do about a variable that Kubernetes has set; empty for any other."""
    is_link = LINK_VALUE.match(os.environ.get(name, "")) or SERVICE_LINK.search(name)
    return (
        "looks like a Kubernetes Service link: set enableServiceLinks: false in the pod's spec" if is_link else ""
    )
