"""A model as Python programs see it, wherever it runs. See stepwise.py."""

from __future__ import annotations

import asyncio
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from PIL import Image

from service.errors import FieldError, InvalidRequest


class Options(TypedDict, total=False):
    """How to sample, as in POST /generate. What is left out is the checkpoint's own."""

    quality: Literal["draft", "default", "best"]
    steps: int
    sampler: str
    spacing: str
    guidance: float
    guidance_low: float
    guidance_high: float
    negative_class: str | int  # to lead away from
    class_to: Class  # the images lead from class_ to it, with the noise of one seed
    seed_to: int  # the images lead from the noise of seed to that of this one
    between: float  # one image, so far on the way
    image: Image.Image  # to start from, of the model's size
    mask: Image.Image  # white may change, black is kept
    strength: float  # how far from the image to go
    deterministic: bool  # the same bytes whatever else runs; of a running service alone
    deadline_ms: int  # likewise


Class = str | int | dict[str | int, float]  # a name, an index, or a mixture of them
Classes = Class | Sequence[Class]
FILES = ("image", "mask")


@dataclass(frozen=True)
class Preview:
    """The finished image as a step predicts it."""

    image: Image.Image
    index: int  # of the image
    step: int  # steps done


@dataclass(frozen=True)
class Trajectory:
    """Every step of n images of C x H x W; the last state of x is the finished image, before it became bytes."""

    x: np.ndarray  # [n, steps + 1, C, H, W] float32: what the first step starts from, and what each has made of it
    denoised: np.ndarray  # [n, steps, C, H, W] float32: the finished image as each step predicts it
    noise: np.ndarray  # [n, steps, C, H, W] float32: that each step has drawn; zeros if it draws none
    times: np.ndarray  # [steps + 1] float64: the noise time of each state, 1 pure noise .. 0 clean
    images: np.ndarray  # [n, H, W, C] uint8
    seeds: np.ndarray  # [n] int64
    labels: np.ndarray  # [n] int64: indices of classes, or their number for none
    recipe: dict[str, str]


ANIMATIONS = {".png": "apng", ".apng": "apng", ".webp": "webp-animation"}  # formats by the end of a file's name


class Sampler(ABC):
    """A model, wherever it runs.

    Attributes:
        name, class_names.
        image_shape: C, H, W.
        samplers: names of those that it can do.
        qualities: what draft, default and best stand for.
    """

    name: str
    class_names: list[str]
    image_shape: tuple[int, int, int]
    samplers: list[str]
    qualities: dict[str, dict[str, Any]]
    _refused: frozenset[str] = frozenset()  # of Options

    def sample(
        self,
        class_: Classes | None = None,
        *,
        n: int | None = None,
        seed: int | None = None,
        on_preview: Callable[[Preview], None] | None = None,
        previews: int = 4,
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """Draw n images of a class.

        Args:
            class_: its name or its index, a mixture such as {"3": 0.5, "8": 0.5}, or a list of these with one image
                each; may be left out with an image.
            n: default: 1, or as many as there are classes in the list.
            seed: default: random. An image tells its own in image.info["seed"], with the rest of its recipe.
            on_preview: is called `previews` times an image on the way.

        Raises:
            service.errors.ServiceError: InvalidRequest names the field and what is allowed.
        """
        fields = self._fields(class_, n, seed, options)
        return self._sample(fields | ({"preview": previews} if on_preview else {}), on_preview)

    async def sample_async(self, *args: Any, **options: Any) -> list[Image.Image]:
        """sample in a thread, so that the event loop goes on. Cancelling it does not end the work."""
        return await asyncio.to_thread(self.sample, *args, **options)

    def trajectory(
        self,
        class_: Classes | None = None,
        *,
        n: int | None = None,
        seed: int | None = None,
        **options: Unpack[Options],
    ) -> Trajectory:
        """Draw as sample does, and tell every step.

        Raises:
            service.errors.ServiceError: as sample; AnswerTooLarge for more images x steps than fit into 36 MiB.
        """
        file = self._record(self._fields(class_, n, seed, options), "npz")
        with np.load(io.BytesIO(file), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found}
        recipe = json.loads(str(arrays.pop("recipe")))
        return Trajectory(**arrays, recipe=recipe)

    def save_animation(
        self,
        path: str | Path,
        class_: Classes | None = None,
        *,
        n: int | None = None,
        seed: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Draw as sample does, and write an animation of the steps, several images as a grid.

        Args:
            path: ends in .webp, or in .png or .apng for an animated PNG.

        Raises:
            ValueError: it does not. service.errors.ServiceError: as trajectory.
        """
        form = ANIMATIONS.get(Path(path).suffix.lower())
        if form is None:
            raise ValueError(f"path: must end in {', '.join(ANIMATIONS)}, not {str(path)!r}")
        Path(path).write_bytes(self._record(self._fields(class_, n, seed, options), form))

    def _fields(
        self, class_: Classes | None, n: int | None, seed: int | None, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Of /generate, with files as bytes."""
        if unknown := options.keys() - Options.__annotations__.keys():
            known = (name for name in Options.__annotations__ if name not in self._refused)
            message = f"unknown field: use class_, n, seed, {', '.join(known)}"
            raise InvalidRequest.of([FieldError(name, message) for name in sorted(unknown)])
        given = {"model": self.name, "class": class_, "n": n, "seed": seed, **options}
        fields = {name: value for name, value in given.items() if value is not None}
        return {name: _png(name, value) if name in FILES else _plain(name, value) for name, value in fields.items()}

    @abstractmethod
    def _sample(
        self, fields: dict[str, Any], on_preview: Callable[[Preview], None] | None
    ) -> list[Image.Image]: ...

    @abstractmethod
    def _record(self, fields: dict[str, Any], form: str) -> bytes:
        """The file of this format, which has every step."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self.class_names)} classes, {self.image_shape})"


def _plain(field: str, value: Any) -> Any:
    """As JSON has it, also of NumPy. Keys of JSON are text, and digits that name no class are an index."""
    if isinstance(value, dict):
        return {str(name): _plain(field, weight) for name, weight in value.items()}
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(field, each) for each in value]
    raise InvalidRequest.field(field, f"must be text, a number, a dict or a list, not {type(value).__name__}")


def _png(name: str, image: Any) -> bytes:
    if not isinstance(image, Image.Image):
        raise InvalidRequest.field(name, f"must be an image of PIL, not {type(image).__name__}")
    buffer = io.BytesIO()
    try:
        image.save(buffer, "PNG")
    except OSError as error:
        message = f"must be gray or RGB with 8 bits a channel, not of mode {image.mode}"
        raise InvalidRequest.field(name, message) from error
    return buffer.getvalue()


def picture(pixels: np.ndarray) -> Image.Image:
    """pixels: [H, W, C] uint8."""
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
