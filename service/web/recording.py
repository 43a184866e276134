"""Record every step of a request: arrays for an npz file, or denoised images for an animation.

Letters: n images of H x W x C, S steps.
"""

import io
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from models.noise import normal
from service.errors import AnswerTooLarge, FieldError, Unavailable
from service.web.images import ANIMATIONS, encode_animation, grid
from service.web.job import Job
from service.wire.async_engine import pixels
from service.wire.messages import Preview, TrajectoryPoint

RECORDED = ("npz", *ANIMATIONS)  # formats
MOST_NUMBERS = 36 * 1024 * 1024  # bytes of x, denoised and noise in a request: 1,024 images x steps of 3 x 32 x 32
BYTES_A_STEP = 3 * 4  # for each element of an image: x, denoised and noise in float32
MAX_HELD = 4 * MOST_NUMBERS  # bytes of a worker: two of the largest recordings, each as arrays and as a file


class Room:
    """A worker's memory budget in bytes for recordings, including steps that the engine has yet to send."""

    def __init__(self, size: int = MAX_HELD):
        self.free = size

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Reserve `size` bytes until the answer is sent or has failed.

        Raises:
            Unavailable: other requests hold the memory.
        """
        if size > self.free:
            raise Unavailable.because("too many trajectories at once")
        self.free -= size
        try:
            yield
        finally:
            self.free += size


def recorded_bytes(job: Job, form: str) -> int:
    """Bytes that a recording takes, as arrays and as a file together; form: one of RECORDED.

    Raises:
        AnswerTooLarge: the arrays would be larger than MOST_NUMBERS.
    """
    images, steps, elements = len(job.params.seeds), job.params.num_steps, int(np.prod(job.card.image_shape))
    most = MOST_NUMBERS // (BYTES_A_STEP * elements)
    if images * steps > most:
        message = f"n x steps may be at most {most} for format={form}, not {images} x {steps}"
        raise AnswerTooLarge(f"n: {message}", [FieldError("n", message), FieldError("steps", message)])
    return 2 * images * steps * BYTES_A_STEP * elements


class Recorder(ABC):
    """Collects the engine's updates during a request, and encodes them as the answer."""

    num_previews = 0  # previews of each image that it needs

    @abstractmethod
    def add(self, update: Preview | TrajectoryPoint) -> None: ...

    @abstractmethod
    def encode(self, images: list[np.ndarray]) -> bytes:
        """The file, from the finished images [H, W, C] uint8; may run in a thread."""


class TrajectoryRecorder(Recorder):
    """An npz file with x, denoised image and noise of every step."""

    def __init__(self, job: Job):
        self._job, self._params = job, job.params
        C, H, W = job.card.image_shape
        n, S = len(self._params.seeds), self._params.num_steps
        self._x = np.zeros((n, S + 1, C, H, W), np.float32)
        self._denoised = np.zeros((n, S, C, H, W), np.float32)
        self._times, self._scales = np.zeros(S + 1), np.zeros(S)  # the last state has time 0
        self._level = (0.0, 1.0)  # alpha and sigma of what the first step starts from

    def add(self, update: Preview | TrajectoryPoint) -> None:
        assert isinstance(update, TrajectoryPoint)  # no previews were asked for
        place, shape = (update.index, update.step), self._x.shape[2:]
        self._x[update.index, update.step + 1] = np.frombuffer(update.x, np.float32).reshape(shape)
        self._denoised[place] = np.frombuffer(update.denoised, np.float32).reshape(shape)
        self._times[update.step], self._scales[update.step] = update.time, update.noise_scale
        if update.step == 0:
            self._level = update.level

    def arrays(self, images: list[np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of the npz file by name; docs/api.md describes their shapes."""
        params, noise = self._params, np.zeros_like(self._denoised)
        for index, seed in enumerate(params.seeds):
            self._x[index, 0] = self._start(index)
            for step in np.flatnonzero(self._scales).tolist():
                noise[index, step] = self._normal(seed, step + 1)
        labels = [params.mixture(index)[0][0] for index in range(len(params.seeds))]
        return {
            "x": self._x,
            "denoised": self._denoised,
            "noise": noise,
            "times": self._times,
            "images": np.stack(images),
            "seeds": np.array(params.seeds),
            "labels": np.array(labels),
            "recipe": np.array(json.dumps(self._job.recipe)),
        }

    def encode(self, images: list[np.ndarray]) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **self.arrays(images))
        return buffer.getvalue()

    def _normal(self, seed: int, step: int) -> np.ndarray:
        shape = self._x.shape[2:]
        return normal(seed, step, int(np.prod(shape))).reshape(shape)

    def _start(self, index: int) -> np.ndarray:
        """The first state [C, H, W]: noise of one seed or between two seeds, or the noised input image."""
        noise = self._normal(self._params.seeds[index], 0)
        if self._params.slerps and self._params.slerps[index][1]:
            other, part = self._params.slerps[index]
            angle = part * math.pi / 2
            noise = np.float32(math.cos(angle)) * noise + np.float32(math.sin(angle)) * self._normal(other, 0)
        if self._params.strength == 1:
            return noise
        C, H, W = noise.shape
        image = np.frombuffer(self._params.image, np.uint8).reshape(H, W, C).transpose(2, 0, 1) / 127.5 - 1
        alpha, sigma = self._level
        return alpha * image + sigma * noise


class AnimationRecorder(Recorder):
    """An animation of the denoised image after every step, and the finished image."""

    def __init__(self, job: Job, form: str):
        self._form, self._text, self.num_previews = form, job.recipe, job.params.num_steps - 1
        self._columns = job.columns  # as in the plain picture
        self._shown: dict[tuple[int, int], np.ndarray] = {}  # by step and image

    def add(self, update: Preview | TrajectoryPoint) -> None:
        assert isinstance(update, Preview)  # no trajectory was asked for
        self._shown[update.step, update.index] = pixels(update)

    def encode(self, images: list[np.ndarray]) -> bytes:
        steps = range(1, self.num_previews + 1)
        shown = [[self._shown[step, index] for index in range(len(images))] for step in steps]
        return encode_animation([grid(frame, self._columns) for frame in [*shown, images]], self._form, self._text)


def recorder(job: Job, form: str) -> Recorder:
    """form: one of RECORDED."""
    return TrajectoryRecorder(job) if form == "npz" else AnimationRecorder(job, form)
