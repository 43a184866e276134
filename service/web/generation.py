"""From a request to its encoded pictures."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Generic, TypeVar

import numpy as np
import PIL

from service.errors import (
    NOT_REPEATED,
    DeadlinePassed,
    DeadlineUnreachable,
    InvalidRequest,
    Refused,
    Unavailable,
    UnknownModel,
    echo,
)
from service.observe import logs
from service.observe.metrics import Metrics
from service.observe.tracing import Spans
from service.settings import Settings
from service.web.job import Job
from service.web.recording import Recorder, Room
from service.web.resolve import resolve
from service.web.schemas import GenerateFields, Limits, Timings, limits
from service.web.uploads import read_known
from service.wire.async_engine import AsyncEngine, pixels
from service.wire.messages import ModelCard, Preview, RequestOutput, SamplingParams

T = TypeVar("T")
# Uploads and pixels up to this size are handled on the event loop, larger ones in a thread.
# 3 KiB of pixels take 20 us as PNG and at most 1 ms as webp; 15 KiB can take 9 ms.
INLINE_BYTES = 4 * 1024
HOPELESS = 0.5  # share of the measured step times that a deadline must leave; they may be too high, but not twofold
Encode = Callable[[list[np.ndarray]], T]  # images [H, W, C] uint8 to what an API sends; may run in a thread


@dataclass(frozen=True, slots=True)
class Shown(Generic[T]):
    """A preview, encoded."""

    result: T
    index: int  # of the image in its request
    step: int  # steps done
    forward: int  # number of the forward that made it


@dataclass(frozen=True, slots=True)
class Generated(Generic[T]):
    """A finished request, encoded."""

    result: T
    job: Job
    timings: Timings
    forwards: tuple[int, ...]  # number of the last forward of each image


@dataclass(frozen=True, slots=True)
class RequestHandler:
    """Checks requests, sends them to the engine and encodes its images, for all routes."""

    engine: AsyncEngine
    metrics: Metrics
    settings: Settings
    names: tuple[str, ...]  # of the models
    spans: Spans = Spans()  # without a provider: records nothing
    version: str = "none"  # of this service
    room: Room = field(default_factory=Room)  # for trajectories and animations

    @property
    def limits(self) -> Limits:
        return limits(self.settings.max_steps, self.settings.max_images)

    def silence(self) -> str:
        """Why the engine counts as dead; "" while it lives, warms up or drains."""
        if self.engine.gone or self.engine.board.state in ("stopped", "dead"):
            return "the engine has stopped"
        if self.engine.board.state == "starting":  # reading checkpoints has no time limit
            return ""
        silent = time.monotonic() - self.engine.board.heartbeat
        return f"the engine has been silent for {silent:.0f} s" if silent > self.settings.heartbeat_seconds else ""

    def unreadiness(self) -> str:
        """Why the engine would refuse all work now; "" when all models are warm."""
        return "" if self.engine.is_ready else self.silence() or "warming up or shutting down"

    def card(self, model: str | None) -> ModelCard:
        """The model's card, as the engine has sent it.

        Raises:
            InvalidRequest: model is None.
            UnknownModel: there is no model of that name.
            Unavailable: the engine still reads the checkpoints.
        """
        names = ", ".join(self.names)
        if model is None:
            raise InvalidRequest.field("model", f"required: one of {names}")
        if model not in self.names:
            raise UnknownModel.field("model", f"there is no model {echo(model)}, only {names}")
        if model not in self.engine.cards:
            raise Unavailable.because("the models are being loaded")
        return self.engine.cards[model]

    async def resolve(self, fields: GenerateFields, seeds: tuple[int, ...] = (), transparent: bool = False) -> Job:
        """Check the fields against the model and fill in its defaults.

        A thread decodes large files first, because one of 64 KiB can hold 64 MiB of compressed text. All else is
        checked after that in one turn of the event loop, against the model version that serves then.

        Args:
            seeds: of each image, instead of those that follow from fields.seed.
            transparent: what may change is marked by transparency in the image or mask, not by white in the mask.

        Raises:
            UnknownModel, InvalidRequest: names the field and what is allowed.
            Unavailable: the engine still reads the checkpoints.
        """
        known, card = None, self.card(fields.model)
        if fields.image is not None and len(fields.image) + len(fields.mask or b"") > INLINE_BYTES:
            known = await asyncio.to_thread(read_known, card, fields.image, fields.mask, transparent)
            card = self.card(fields.model)
        params = resolve(card, self.engine.spacings, fields, self.limits, seeds, transparent, known)
        if params.deterministic and card.repeats_itself is False:
            raise InvalidRequest.field("deterministic", NOT_REPEATED)
        deadline = None if fields.deadline_ms is None else fields.deadline_ms / 1000
        return Job(params, card, f"Stepwise {self.version}", deadline)

    def etag(self, job: Job, form: str) -> str:
        """ETag of a deterministic answer: a hash of all that its bytes depend on; "" while the model warms up."""
        card = self.card(job.params.model)  # the current one: a swap may have replaced job.card
        if not card.repeats_itself:
            return ""
        build = (self.version, np.__version__, PIL.__version__, card.build, card.device, card.dtype)
        facts = (build, card.fixed_rows, card.sha256, job.params, form)
        return f'"{sha256(repr(facts).encode()).hexdigest()[:32]}"'

    def generate(self, job: Job, encode: Encode[T]) -> Coroutine[Any, Any, Generated[T]]:
        """Run a request and return its encoded answer; raises as stream does."""
        return _last(self.stream(job, encode))

    def record(self, job: Job, recorder: Recorder) -> Coroutine[Any, Any, Generated[bytes]]:
        """Run a request and return the file of all its steps; raises as stream does."""
        return _last(self.stream(job, recorder.encode, recorder.num_previews, recorder=recorder))

    async def stream(
        self,
        job: Job,
        encode: Encode[T],
        num_previews: int = 0,
        encode_preview: Encode[T] | None = None,
        recorder: Recorder | None = None,
    ) -> AsyncGenerator[Shown[T] | Generated[T]]:
        """Run a request, yield its previews and then its answer, and count its outcome in metrics and log.

        Args:
            encode_preview: encodes one image; default: encode.
            recorder: takes all updates before the answer; none of them is yielded.

        Raises:
            DeadlineUnreachable: not even an idle device could meet the deadline.
            ServiceError: the engine refused the request, or failed while it ran.
        """
        started, answer = time.monotonic(), None
        asked = job.params, job.deadline_seconds, num_previews, recorder is not None, job.card.version
        try:
            _check_deadline(job)
            async with aclosing(self.engine.generate(*asked)) as updates:
                async for update in updates:
                    if isinstance(update, RequestOutput):
                        answer = await self._answer(job, update, encode, started, recorder is not None)
                    elif recorder is not None:
                        recorder.add(update)
                    elif isinstance(update, Preview):
                        result = await encoded(encode_preview or encode, [pixels(update)])
                        yield Shown(result, update.index, update.step, update.forward)
        except BaseException as error:
            self.count_end(job.params, error)
            raise
        if answer is not None:
            yield answer

    async def _answer(
        self, job: Job, output: RequestOutput, encode: Encode[T], started: float, is_large: bool
    ) -> Generated[T]:
        encoding, params = time.monotonic(), job.params
        images = list(pixels(output))
        result = await (asyncio.to_thread(encode, images) if is_large else encoded(encode, images))
        now = time.monotonic()
        queue, denoise = output.started - output.arrived, output.finished - output.started
        timings = Timings(queue=queue, denoise=denoise, encode=now - encoding)
        self.metrics.answer(params.model, len(images), timings.queue, timings.denoise, now - started)
        times = {"queue_seconds": round(timings.queue, 6), "denoise_seconds": round(timings.denoise, 6)}
        _note(params, outcome="ok", **times)
        facts = {"model": params.model, "images": len(images)}
        self.spans.record("queue", output.arrived, output.started, **facts)
        self.spans.record("denoise", output.started, output.finished, steps=params.num_steps, **facts)
        self.spans.record("encode", encoding, now, **facts)
        return Generated(result, job, timings, output.forwards)

    def count_end(self, params: SamplingParams, error: BaseException) -> None:
        """Count the outcome of a request that got no images, by its error."""
        match error:
            case InvalidRequest():  # counts in no metric
                _note(params)
                return
            case Refused():
                outcome = "rejected"
                self.metrics.reject(params.model, error.reason)
            case DeadlinePassed():
                outcome = "expired"
            case asyncio.CancelledError() | GeneratorExit():
                outcome = "cancelled"
            case _:
                outcome = "error"
        self.metrics.end(params.model, outcome)
        _note(params, outcome=outcome)


def _note(params: SamplingParams, **facts: Any) -> None:
    """For the access line of the request."""
    logs.note(model=params.model, steps=params.num_steps, n=len(params.seeds), **facts)


def _check_deadline(job: Job) -> None:
    """Refuse a hopeless one here, so that a flood of such requests costs the engine no time."""
    needed = job.params.num_steps * min(job.card.step_seconds.values(), default=0.0)
    if job.deadline_seconds is not None and job.deadline_seconds < HOPELESS * needed:
        text = f"the deadline cannot be met: at least {1000 * needed:.0f} ms are needed"
        raise DeadlineUnreachable.field("deadline_ms", text)  # no retry_after: a retry would be refused, too


async def _last(updates: AsyncGenerator[Shown[T] | Generated[T]]) -> Generated[T]:
    async with aclosing(updates):
        async for update in updates:
            if isinstance(update, Generated):
                return update
    raise AssertionError("the engine gave no answer")  # it always does


async def encoded(encode: Encode[T], images: list[np.ndarray]) -> T:
    """Encode small images on the event loop, larger ones in a thread, so that other requests do not wait."""
    small = sum(image.nbytes for image in images) <= INLINE_BYTES
    return encode(images) if small else await asyncio.to_thread(encode, images)
