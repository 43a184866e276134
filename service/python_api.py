"""A model as Python programs see it: wherever it runs, and over HTTP. See stepwise.py."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np
from PIL import Image

from service.errors import FieldError, ServiceError, UnknownModel
from service.wire.messages import KINDS

if TYPE_CHECKING:
    import httpx


class Options(TypedDict, total=False):
    """How to sample, as in POST /generate. What is left out is the checkpoint's own."""

    quality: Literal["draft", "default", "best"]
    steps: int
    sampler: str
    spacing: str
    guidance: float
    guidance_low: float
    guidance_high: float
    image: Image.Image  # to start from, of the model's size
    mask: Image.Image  # white may change, black is kept
    strength: float  # how far from the image to go


@dataclass(frozen=True)
class Preview:
    """What the model expects an image to become."""

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

    def sample(
        self,
        class_: str | int | None = None,
        *,
        n: int = 1,
        seed: int | None = None,
        on_preview: Callable[[Preview], None] | None = None,
        previews: int = 4,
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """Draw n images of a class.

        Args:
            class_: its name or its index; may be left out with an image.
            seed: default: random. An image tells its own in image.info["seed"], with the rest of its recipe.
            on_preview: is called `previews` times an image on the way.

        Raises:
            service.errors.ServiceError: InvalidRequest names the field and what is allowed.
        """
        fields = self._fields(class_, n, seed, options)
        return self._sample(fields, on_preview, previews if on_preview else 0)

    async def sample_async(self, *args: Any, **options: Any) -> list[Image.Image]:
        """sample in a thread, so that the event loop goes on. Cancelling it does not end the work."""
        return await asyncio.to_thread(self.sample, *args, **options)

    def trajectory(
        self, class_: str | int | None = None, *, n: int = 1, seed: int | None = None, **options: Unpack[Options]
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
        class_: str | int | None = None,
        *,
        n: int = 1,
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
        self, class_: str | int | None, n: int, seed: int | None, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Of /generate, with files as bytes."""
        fields: dict[str, Any] = {"model": self.name, "n": n, **options}
        fields |= {"class": class_} if class_ is not None else {}
        fields |= {"seed": seed} if seed is not None else {}
        return fields | {name: _png(fields[name]) for name in ("image", "mask") if name in fields}

    @abstractmethod
    def _sample(
        self, fields: dict[str, Any], on_preview: Callable[[Preview], None] | None, previews: int
    ) -> list[Image.Image]: ...

    @abstractmethod
    def _record(self, fields: dict[str, Any], form: str) -> bytes:
        """The file of this format, which has every step."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self.class_names)} classes, {self.image_shape})"


class RemoteModel(Sampler):
    """A model of a running service; see connect."""

    def __init__(self, url: str, model: str, key: str, patience: float):
        try:
            import httpx
        except ImportError as error:
            raise ImportError("stepwise.connect needs httpx: pip install 'stepwise-diffusion[client]'") from error
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=httpx.Timeout(patience))
        self._patience = patience
        try:
            info = self._info(model)
        except BaseException:
            self.close()
            raise
        self.name, self.class_names, self.samplers = model, info["class_names"], info["samplers"]
        self.image_shape, self.qualities = tuple(info["image_shape"]), info["qualities"]

    def _info(self, model: str) -> dict[str, Any]:
        with self._answer("GET", "/models", "application/json") as answer:
            models = {info["name"]: info for info in json.loads(answer.read())["models"]}
        if model not in models:
            message = f"there is no model {model!r} at {self._http.base_url}, only {', '.join(models)}"
            raise UnknownModel(f"model: {message}", [FieldError("model", message)])
        return models[model]

    def close(self) -> None:
        """Also what the end of a `with` block does."""
        self._http.close()

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sample(
        self, fields: dict[str, Any], on_preview: Callable[[Preview], None] | None, previews: int
    ) -> list[Image.Image]:
        fields = _as_json(fields)
        if on_preview is None:
            with self._answer("POST", "/generate", "application/json", fields) as answer:
                return [_decoded(image["png_base64"]) for image in json.loads(answer.read())["images"]]
        images: dict[int, Image.Image] = {}
        with self._answer("POST", "/generate", "text/event-stream", fields | {"preview": previews}) as answer:
            for name, data in _events(answer.iter_lines()):
                image, index = _decoded(data["b64_json"]), data["image_index"]
                if name.endswith("partial_image"):
                    on_preview(Preview(image, index, data["step"]))
                else:
                    images[index] = image
        return [images[index] for index in sorted(images)]

    def _record(self, fields: dict[str, Any], form: str) -> bytes:
        with self._answer("POST", "/generate", "*/*", _as_json(fields) | {"format": form}) as answer:
            return answer.read()

    @contextmanager
    def _answer(
        self, method: str, path: str, accept: str, fields: dict[str, Any] | None = None
    ) -> Iterator[httpx.Response]:
        """Once the service has one."""
        until = time.monotonic() + self._patience
        while True:
            with self._http.stream(method, path, json=fields, headers={"Accept": accept}) as response:
                if response.is_success:
                    yield response
                    return
                error = _error(response.read(), response.status_code)
            wait = random.uniform(1.0, 1.2) * (error.retry_after or 0.0)  # not all clients at once
            if error.retry_after is None or time.monotonic() + wait > until:
                raise error
            time.sleep(wait)


def _as_json(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {name: base64.b64encode(fields[name]).decode() for name in ("image", "mask") if name in fields}


def _events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in lines:
        kind, _, value = line.partition(": ")
        if kind == "event":
            name = value
        elif kind == "data":
            if name == "error":
                raise _error(value.encode())
            yield name, json.loads(value)


def _error(body: bytes, status: int = 200) -> ServiceError:
    """Of the service's own API, as it was raised there; or whatever a proxy says."""
    try:
        problem = json.loads(body)
        kind = KINDS.get(problem["type"].rpartition(":")[2], ServiceError)
        errors = [FieldError(error["field"], error["message"]) for error in problem.get("errors", [])]
        wait = problem.get("retry_after_ms")
        return kind(problem["detail"], errors, None if wait is None else wait / 1000)
    except (ValueError, KeyError, TypeError):
        return ServiceError(f"status {status}: {body[:200].decode(errors='replace')}")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _decoded(png: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    image.load()
    return image


def picture(pixels: np.ndarray) -> Image.Image:
    """pixels: [H, W, C] uint8."""
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
