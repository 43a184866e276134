"""From the fields of a request to SamplingParams, and from images to an answer."""

import asyncio
import secrets
import time
from contextlib import aclosing
from dataclasses import dataclass
from hashlib import sha256

import torch

from kernels.philox import SEED_BITS, image_seed
from models.checkpoint import ModelConfig
from service import images
from service.engine.async_engine import AsyncEngine
from service.engine.core import EngineCore
from service.engine.plan import compile_plan
from service.engine.request import (
    DeadlinePassed,
    DeadlineUnreachable,
    EngineError,
    QueueFull,
    RequestFailed,
    RequestOutput,
    SamplingParams,
)
from service.errors import FieldError, InvalidRequest, UnknownModel, from_engine
from service.metrics import Metrics
from service.schemas import GeneratedImage, GenerateFields, GenerateResponse, Timings
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Generated:
    """A finished request with its encoded body."""

    body: bytes
    params: SamplingParams
    timings: Timings
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Generator:
    """What the routes generate with."""

    engine: AsyncEngine
    metrics: Metrics
    settings: Settings
    core: EngineCore  # to look at what its warm-up found
    simulated: frozenset[str] = frozenset()  # models that only take time

    def resolve(self, fields: GenerateFields) -> SamplingParams:
        """Check the fields against the model and fill in its defaults.

        Raises:
            UnknownModel, InvalidRequest: what is wrong, and what is allowed.
        """
        if fields.model is None:
            raise InvalidRequest.field("model", f"required: one of {', '.join(self.engine.configs)}")
        config = self.engine.configs.get(fields.model)
        if config is None:
            names = ", ".join(self.engine.configs)
            message = f"there is no model {fields.model[:40]!r}, only {names}"
            raise UnknownModel(f"model: {message}", [FieldError(field="model", message=message)])
        defaults = config.default_sampling
        steps, n = fields.steps or defaults["steps"], fields.n or 1
        _check_bound("steps", steps, self.settings.max_steps)
        _check_bound("n", n, self.settings.max_images)
        seed = secrets.randbits(SEED_BITS) if fields.seed is None else fields.seed
        params = SamplingParams(
            model=fields.model,
            class_label=find_class(config, fields.class_),
            num_steps=steps,
            sampler=fields.sampler or defaults["sampler"],
            guidance_scale=defaults["guidance"] if fields.guidance is None else fields.guidance,
            guidance_interval=_interval(config, fields),
            seeds=tuple(image_seed(seed, index) for index in range(n)),
            deterministic=bool(fields.deterministic),
        )
        if params.deterministic and self.core.repeats_itself.get(params.model) is False:
            message = "this machine does not repeat itself bit by bit, as a check at start-up showed"
            raise InvalidRequest.field("deterministic", message)
        try:
            compile_plan(config, params)
        except ValueError as error:
            raise InvalidRequest.field("sampler", str(error)) from error
        return params

    def etag(self, params: SamplingParams, form: str) -> str:
        """Names the bytes of a deterministic answer: they depend on nothing else."""
        runner = self.core.runners[params.model]
        facts = (runner.config.sha256, runner.describe(), runner.fixed_rows, torch.__version__, params, form)
        return f'"{sha256(repr(facts).encode()).hexdigest()[:32]}"'

    async def generate(
        self, params: SamplingParams, form: str, request_id: str, deadline_seconds: float | None = None
    ) -> Generated:
        """Run a request to its encoded answer, and count it.

        Raises:
            ServiceError: as from_engine maps the engine's refusals.
        """
        started = time.monotonic()
        try:
            async with aclosing(self.engine.generate(params, deadline_seconds)) as outputs:
                output = await anext(outputs)
            encoding = time.monotonic()
            body = await asyncio.to_thread(self._encode, output, params, form, request_id, encoding)
        except EngineError as error:
            self._count_error(params.model, error)
            raise from_engine(error) from error
        except asyncio.CancelledError:
            self.metrics.requests.labels(params.model, "cancelled").inc()
            raise
        except Exception:
            self.metrics.requests.labels(params.model, "error").inc()
            raise
        now = time.monotonic()
        timings = _timings(output, now - encoding)
        self.metrics.observe_answer(params.model, len(output.images), timings.queue, timings.denoise, now - started)
        return Generated(body, params, timings, params.model in self.simulated)

    def _count_error(self, model: str, error: EngineError) -> None:
        if isinstance(error, RequestFailed | DeadlinePassed):
            outcome = "error" if isinstance(error, RequestFailed) else "expired"
            self.metrics.requests.labels(model, outcome).inc()
        else:
            reasons = {QueueFull: "queue_full", DeadlineUnreachable: "deadline"}
            self.metrics.reject(model, reasons.get(type(error), "unavailable"))

    def _encode(
        self, output: RequestOutput, params: SamplingParams, form: str, request_id: str, started: float
    ) -> bytes:
        if form != "json":
            return images.encode(list(output.images), form)
        pictures = images.encode_base64(list(output.images))
        timings = _timings(output, time.monotonic() - started)
        return _answer(self.engine.configs[params.model], params, pictures, timings, request_id)


def find_class(config: ModelConfig, value: str | None) -> int:
    """Class name first, index second; a name may itself be a number."""
    names = [name.lower() for name in config.class_names]
    allowed = f"one of {', '.join(config.class_names[:20])}" + (", ..." if len(names) > 20 else "")
    if value is None:
        raise InvalidRequest.field("class", f"required: {allowed}, or an index 0..{len(names) - 1}")
    text = value.strip().lower()
    if text in names:
        return names.index(text)
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(names):
        return int(text)
    raise InvalidRequest.field("class", f"{value[:40]!r} is not {allowed}, or an index 0..{len(names) - 1}")


def _interval(config: ModelConfig, fields: GenerateFields) -> tuple[float, float]:
    low, high = config.default_sampling["guidance_interval"]
    low = low if fields.guidance_low is None else fields.guidance_low
    high = high if fields.guidance_high is None else fields.guidance_high
    if low > high:
        raise InvalidRequest.field("guidance_low", f"{low} is above guidance_high {high}")
    return float(low), float(high)


def _check_bound(name: str, value: int, bound: int) -> None:
    if value > bound:
        raise InvalidRequest.field(name, f"{value} is more than this service allows, {bound}")


def _timings(output: RequestOutput, encode: float) -> Timings:
    return Timings(queue=output.queue_seconds, denoise=output.denoise_seconds, encode=encode)


def _answer(
    config: ModelConfig, params: SamplingParams, pictures: list[str], timings: Timings, request_id: str
) -> bytes:
    answer = GenerateResponse(
        request_id=request_id,
        model=params.model,
        **{"class": config.class_names[params.class_label]},
        class_index=params.class_label,
        steps=params.num_steps,
        sampler=params.sampler,
        guidance=params.guidance_scale,
        guidance_interval=params.guidance_interval,
        images=[GeneratedImage(seed=s, png_base64=p) for s, p in zip(params.seeds, pictures, strict=True)],
        timings=timings,
    )
    return answer.model_dump_json(by_alias=True).encode()
