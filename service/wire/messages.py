"""The messages between HTTP workers and the engine: plain data, which msgspec writes and checks.

A worker sends Generate, Abort and Swap, and numbers its own requests. The engine sends Cards first. Then it sends,
for each request, replies: any number of previews and trajectory points, and exactly one output or refusal, unless
it is aborted before. A swap gets one Swapped or refusal. When Cards bring another version of a model, the worker
says Seen.
"""

from dataclasses import dataclass, replace
from typing import Any

import msgspec

from service.errors import PROBLEMS, FieldError, ServiceError

KINDS = {kind.code: kind for kind in PROBLEMS}
Mixture = tuple[tuple[int, float], ...]  # labels and their weights, which sum up to 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """One validated sampling request."""

    model: str
    class_label: int
    num_steps: int
    sampler: str
    guidance_scale: float  # 1 is off
    guidance_interval: tuple[float, float]  # in noise time, 0 clean .. 1 noise
    seeds: tuple[int, ...]  # one an image
    class_labels: tuple[int, ...] = ()  # one an image, where they differ
    deterministic: bool = False  # the same bytes whatever else runs, at the cost of full steps
    spacing: str = "trailing"  # of the noise times
    image: bytes = b""  # [H, W, C] uint8 to start from; none: from noise
    mask: bytes = b""  # [H, W] bool: which pixels of it may change; none: all
    strength: float = 1.0  # of the noise that the image gets; 1 starts from noise, and keeps what the mask keeps
    mixtures: tuple[Mixture, ...] = ()  # one an image, its own label first; () is an image of that label alone
    negative_label: int | None = None  # of the second row; none: the null label
    slerps: tuple[tuple[int, float], ...] = ()  # one an image: another seed, and how far to its noise, from 0 to 1
    interpolated: tuple[str, ...] = ()  # of "class", "seed": what goes from the first image to the last
    trajectory: bool = False  # every step is sent as a TrajectoryPoint

    def mixture(self, index: int) -> Mixture:
        """Classes and weights of an image, also if it has one class only."""
        if self.mixtures and self.mixtures[index]:
            return self.mixtures[index]
        return ((self.class_labels[index] if self.class_labels else self.class_label, 1.0),)

    def alone(self, index: int) -> "SamplingParams":
        """The parameters that give image `index` by itself."""
        mixture = self.mixture(index)
        return replace(
            self,
            class_label=mixture[0][0],
            class_labels=(),
            mixtures=(mixture,) if len(mixture) > 1 else (),
            seeds=self.seeds[index : index + 1],
            slerps=tuple(slerp for slerp in self.slerps[index : index + 1] if slerp[1]),
            interpolated=(),
        )


class ModelCard(msgspec.Struct, frozen=True):
    """What a worker knows of a model. The engine sends it before the warm-up, and again when a part has changed."""

    name: str
    architecture: str
    parameters: int
    image_shape: tuple[int, int, int]  # C, H, W
    class_names: list[str]
    samplers: dict[str, int]  # those that the model can do, with the steps that they take where nobody says
    sampling: dict[str, dict[str, Any]]  # by quality: steps, sampler, spacing, guidance, guidance_interval
    sha256: str  # of the weights
    device: str
    dtype: str
    hardware: str  # name of the GPU, or cpu
    simulated: bool  # it takes time and draws stripes
    build: str  # what the bits of an image depend on besides its request: versions, device, threads
    backend: str = "torch"  # that runs the network
    weight: float = 1.0  # share of the device
    guidance_range: tuple[float, float] | None = None  # scales that a few-step network takes without a second row
    max_rows: int | None = None  # measured by the warm-up, like all that follows; lower after a lack of memory
    fixed_rows: int | None = None  # of every step in the deterministic mode
    repeats_itself: bool | None = None  # whether the deterministic mode works here; None until the backend is final
    step_seconds: dict[int, float] = {}  # by row count
    version: int = 1  # one more with each swap

    @property
    def null_label(self) -> int:
        """Of rows without a class."""
        return len(self.class_names)

    def class_name(self, label: int) -> str | None:
        """None for the null label."""
        return None if label == self.null_label else self.class_names[label]

    @property
    def default_sampling(self) -> dict[str, Any]:
        return self.sampling["default"]


class Cards(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The engine's models, in order."""

    cards: list[ModelCard]
    samplers: list[str]  # all that are registered; each card names those that its model can do
    spacings: list[str]
    shed_load: bool


class Generate(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A request for images; number is the worker's name for it."""

    number: int
    params: SamplingParams
    deadline_seconds: float | None = None
    num_previews: int = 0
    keeps_previews: bool = False  # the worker has room for all of them, and none may be dropped
    version: int | None = None  # of the model, against which params were checked; None: whichever there is


class Abort(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The client of a request has gone. Harmless when the request has ended."""

    number: int


class Swap(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """An operator wants a model to have the weights of a folder; number as in Generate."""

    number: int
    model: str
    folder: str


class Seen(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The worker asks for no version of a model but those of the last Cards, from here on."""


class Preview(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The denoised image that a step predicts, on the way to the finished one."""

    pixels: bytes  # uint8
    shape: tuple[int, int, int]  # H, W, C
    index: int  # of the image in its request
    step: int  # steps done
    forward: int = 0  # number of the forward that made it: images with the same model and number shared it


class TrajectoryPoint(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The state of an image after a step, and the numbers of the step."""

    index: int  # of the image in its request
    step: int  # from 0
    x: bytes  # [C, H, W] float32, behind the step
    denoised: bytes  # likewise, as the step predicts the image; clamped where the sampler clamps it
    time: float  # noise time at which the step began
    level: tuple[float, float]  # alpha and sigma there
    noise_scale: float  # of the noise that the step has drawn; 0 for none


class RequestOutput(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The answer to a finished request."""

    pixels: bytes  # of all images, one after the other
    shape: tuple[int, int, int, int]  # n, H, W, C
    arrived: float  # at the engine, in seconds of the monotonic clock that the processes of a machine share
    started: float  # its first step
    finished: float  # its last one
    forwards: tuple[int, ...] = ()  # number of the last forward of each image


class Swapped(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The answer to a swap: all workers know of the new version."""


class Refusal(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """An error, which a worker raises again."""

    code: str
    detail: str
    errors: list[FieldError]
    retry_after: float | None

    @classmethod
    def of(cls, error: ServiceError) -> "Refusal":
        return cls(error.code, error.detail, error.errors, error.retry_after)

    def error(self) -> ServiceError:
        return KINDS.get(self.code, ServiceError)(self.detail, self.errors, self.retry_after)


class Reply(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A result of the request of that number."""

    number: int
    result: Preview | TrajectoryPoint | RequestOutput | Swapped | Refusal


FromWorker = Generate | Abort | Swap | Seen
FromEngine = Cards | Reply
