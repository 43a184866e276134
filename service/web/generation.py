"""From a request to its encoded pictures."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Generic, TypeVar

import numpy as np
import PIL
import torch

from models.checkpoint import ModelConfig
from service.engine.async_engine import AsyncEngine
from service.engine.core import EngineCore
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
from service.observe import logs
from service.observe.metrics import Metrics
from service.observe.tracing import Spans
from service.settings import Settings
from service.web.errors import FieldError, InvalidRequest, UnknownModel, echo, from_engine
from service.web.resolve import recipe, resolve
from service.web.schemas import GenerateFields, Limits, Timings, limits

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
    version: str = "none"  # of this service

    @property
    def limits(self) -> Limits:
        return limits(self.settings.max_steps, self.settings.max_images)

    def config(self, model: str | None) -> ModelConfig:
        """Raises InvalidRequest where no model is named, UnknownModel where there is none of that name."""
        names = ", ".join(self.engine.configs)
        if model is None:
            raise InvalidRequest.field("model", f"required: one of {names}")
        if (config := self.engine.configs.get(model)) is None:
            message = f"there is no model {echo(model)}, only {names}"
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
        params = resolve(self.config(fields.model), fields, self.limits, labels, seeds)
        if params.deterministic and self.core.repeats_itself.get(params.model) is False:
            message = "this machine does not repeat itself bit by bit, as a check at start-up showed"
            raise InvalidRequest.field("deterministic", message)
        return params

    def etag(self, params: SamplingParams, form: str) -> str:
        """Names the bytes of a deterministic answer, which depend on nothing else; "" while the model warms up."""
        if not self.core.repeats_itself.get(params.model):
            return ""
        runner = self.core.runners[params.model]
        build = (self.version, torch.__version__, np.__version__, PIL.__version__)
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        machine = (runner.describe(), gpu, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
        facts = (build, machine, runner.fixed_rows, runner.config.sha256, params, form)
        return f'"{sha256(repr(facts).encode()).hexdigest()[:32]}"'

    def recipe(self, params: SamplingParams) -> dict[str, str]:
        """What a PNG says about itself; the grid of all images, where there are several."""
        ours = {"Software": f"Stepwise {self.version}"} | recipe(self.config(params.model), params)
        return ours | ({"simulated": "true"} if params.model in self.simulated else {})

    def recipes(self, params: SamplingParams) -> list[dict[str, str]]:
        """The same for each image by itself."""
        return [self.recipe(replace(params, seeds=(seed,))) for seed in params.seeds]

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
        encode_preview: Encode[T] | None = None,
    ) -> AsyncGenerator[Shown[T] | Generated[T]]:
        """Run a request, yield its previews and then its answer, and count it by its end.

        Args:
            encode_preview: of one image; default: encode.

        Raises:
            ServiceError: as from_engine maps the engine's refusals.
        """
        started, answer = time.monotonic(), None
        logs.note(model=params.model, steps=params.num_steps, n=len(params.seeds))
        try:
            async with aclosing(self.engine.generate(params, deadline_seconds, num_previews)) as updates:
                async for update in updates:
                    if isinstance(update, Preview):
                        result = await asyncio.to_thread(encode_preview or encode, [update.image])
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
