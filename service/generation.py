"""From the fields of a request to SamplingParams, and from a request to its encoded pictures."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from hashlib import sha256
from typing import Generic, TypeVar

import numpy as np
import PIL
import torch

from kernels.philox import SEED_BITS, image_seed
from models.checkpoint import ModelConfig
from service import logs
from service.engine.async_engine import AsyncEngine
from service.engine.core import EngineCore
from service.engine.plan import compile_plan
from service.engine.request import (
    DeadlinePassed,
    DeadlineUnreachable,
    EngineError,
    Overloaded,
    Preview,
    QueueFull,
    RequestFailed,
    RequestOutput,
    SamplingParams,
)
from service.errors import FieldError, InvalidRequest, UnknownModel, from_engine
from service.metrics import Metrics
from service.schemas import GenerateFields, Timings
from service.settings import Settings
from service.tracing import Spans

MAX_PREVIEWS_SHOWN = 256  # of one request, on all its images
T = TypeVar("T")
Encode = Callable[[list[np.ndarray]], T]  # images [H, W, C] uint8 to whatever an API sends; runs in a worker thread


@dataclass(frozen=True, slots=True)
class Shown(Generic[T]):
    """A preview, encoded."""

    result: T
    index: int  # of the image in its request
    step: int  # steps done


@dataclass(frozen=True, slots=True)
class Generated(Generic[T]):
    """A finished request, encoded."""

    result: T
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
    spans: Spans = Spans()  # forgets

    def config(self, model: str | None) -> ModelConfig:
        """Raises InvalidRequest where no model is named, UnknownModel where there is none of that name."""
        names = ", ".join(self.engine.configs)
        if model is None:
            raise InvalidRequest.field("model", f"required: one of {names}")
        if (config := self.engine.configs.get(model)) is None:
            message = f"there is no model {model[:40]!r}, only {names}"
            raise UnknownModel(f"model: {message}", [FieldError(field="model", message=message)])
        return config

    def resolve(
        self, fields: GenerateFields, labels: tuple[int, ...] = (), seeds: tuple[int, ...] = ()
    ) -> SamplingParams:
        """Check the fields against the model and fill in its defaults.

        Args:
            labels: class index of each image, instead of fields.class_ for all.
            seeds: of each image, instead of those that follow from fields.seed.

        Raises:
            UnknownModel, InvalidRequest: what is wrong, and what is allowed.
        """
        config = self.config(fields.model)
        defaults = config.default_sampling
        steps, n = fields.steps or defaults["steps"], fields.n or 1
        _check_bound("steps", steps, self.settings.max_steps)
        _check_bound("n", n, self.settings.max_images)
        seed = secrets.randbits(SEED_BITS) if fields.seed is None else fields.seed
        params = SamplingParams(
            model=fields.model or "",
            class_label=0 if labels else find_class(config, fields.class_),
            class_labels=_check_labels(config, labels),
            num_steps=steps,
            sampler=fields.sampler or defaults["sampler"],
            guidance_scale=defaults["guidance"] if fields.guidance is None else fields.guidance,
            guidance_interval=_interval(config, fields),
            seeds=seeds or tuple(image_seed(seed, index) for index in range(n)),
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
        machine = (
            runner.describe(),
            runner.fixed_rows,
            torch.__version__,
            torch.get_num_threads(),
            PIL.__version__,
        )
        facts = (runner.config.sha256, machine, params, form)
        return f'"{sha256(repr(facts).encode()).hexdigest()[:32]}"'

    async def generate(
        self, params: SamplingParams, encode: Encode[T], deadline_seconds: float | None = None
    ) -> Generated[T]:
        """Run a request to its encoded answer; raises as stream does."""
        async with aclosing(self.stream(params, encode, deadline_seconds)) as updates:
            async for update in updates:
                if isinstance(update, Generated):
                    return update
        raise AssertionError("the engine gave no answer")  # it always does

    async def stream(
        self,
        params: SamplingParams,
        encode: Encode[T],
        deadline_seconds: float | None = None,
        num_previews: int = 0,
    ) -> AsyncGenerator[Shown[T] | Generated[T]]:
        """Run a request, yield its previews and then its answer, and count it by its end.

        Raises:
            ServiceError: as from_engine maps the engine's refusals.
        """
        started, answer = time.monotonic(), None
        logs.note(model=params.model, steps=params.num_steps, n=len(params.seeds))
        try:
            async with aclosing(self.engine.generate(params, deadline_seconds, num_previews)) as updates:
                async for update in updates:
                    if isinstance(update, Preview):
                        result = await asyncio.to_thread(encode, [update.image])
                        yield Shown(result, update.index, update.step)
                    else:
                        answer = await self._answer(params, update, encode, started)
        except EngineError as error:
            self._count_error(params.model, error)
            raise from_engine(error) from error
        except (asyncio.CancelledError, GeneratorExit):
            logs.note(outcome="cancelled")
            self.metrics.requests.labels(params.model, "cancelled").inc()
            raise
        except Exception:
            logs.note(outcome="error")
            self.metrics.requests.labels(params.model, "error").inc()
            raise
        if answer is not None:
            yield answer

    async def _answer(
        self, params: SamplingParams, output: RequestOutput, encode: Encode[T], started: float
    ) -> Generated[T]:
        encoding = time.monotonic()
        result = await asyncio.to_thread(encode, list(output.images))
        now = time.monotonic()
        timings = Timings(queue=output.queue_seconds, denoise=output.denoise_seconds, encode=now - encoding)
        self.metrics.observe_answer(params.model, len(output.images), timings.queue, timings.denoise, now - started)
        times = {"queue_seconds": round(timings.queue, 6), "denoise_seconds": round(timings.denoise, 6)}
        logs.note(outcome="ok", **times)
        denoising = started + timings.queue
        facts = {"model": params.model, "images": len(output.images)}
        self.spans.record("queue", started, denoising, **facts)
        self.spans.record("denoise", denoising, denoising + timings.denoise, steps=params.num_steps, **facts)
        self.spans.record("encode", encoding, now, **facts)
        return Generated(result, params, timings, params.model in self.simulated)

    def _count_error(self, model: str, error: EngineError) -> None:
        if isinstance(error, RequestFailed | DeadlinePassed):
            outcome = "error" if isinstance(error, RequestFailed) else "expired"
            logs.note(outcome=outcome)
            self.metrics.requests.labels(model, outcome).inc()
        else:
            logs.note(outcome="rejected")
            reasons = {QueueFull: "queue_full", Overloaded: "overload", DeadlineUnreachable: "deadline"}
            self.metrics.reject(model, reasons.get(type(error), "unavailable"))


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


def _check_labels(config: ModelConfig, labels: tuple[int, ...]) -> tuple[int, ...]:
    for label in labels:
        if not 0 <= label < len(config.class_names):
            raise InvalidRequest.field("class", f"{label} is not an index 0..{len(config.class_names) - 1}")
    return labels


def _interval(config: ModelConfig, fields: GenerateFields) -> tuple[float, float]:
    low, high = config.default_sampling["guidance_interval"]
    low = low if fields.guidance_low is None else fields.guidance_low
    high = high if fields.guidance_high is None else fields.guidance_high
    if low > high:
        raise InvalidRequest.field("guidance_low", f"{low} is above guidance_high {high}")
    return float(low), float(high)


def check_previews(params: SamplingParams, previews: int, field: str) -> int:
    """Each is a picture to encode and to keep until its reader takes it; the device pays for none.

    Raises:
        InvalidRequest: there would be more of them than MAX_PREVIEWS_SHOWN.
    """
    if previews * len(params.seeds) > MAX_PREVIEWS_SHOWN:
        message = f"{previews} of each of {len(params.seeds)} images are more than {MAX_PREVIEWS_SHOWN} in all"
        raise InvalidRequest.field(field, message)
    return previews


def _check_bound(name: str, value: int, bound: int) -> None:
    if value > bound:
        raise InvalidRequest.field(name, f"{value} is more than this service allows, {bound}")
