"""A model as Python programs see it: wherever it runs, and over HTTP. See stepwise.py."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
    negative_class: str | int  # to lead away from
    class_to: str | int | dict[str | int, float]  # the images lead from class_ to it, with the noise of one seed
    seed_to: int  # the images lead from the noise of seed to that of this one
    between: float  # one image, so far on the way
    image: Image.Image  # to start from, of the model's size
    mask: Image.Image  # white may change, black is kept
    strength: float  # how far from the image to go


@dataclass(frozen=True)
class Preview:
    """What the model expects an image to become."""

    image: Image.Image
    index: int  # of the image
    step: int  # steps done


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
        class_: str | int | dict[str | int, float] | Sequence[str | int | dict[str | int, float]] | None = None,
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
        given = {"class": class_, "class_to": options.get("class_to"), "n": n, "seed": seed}
        fields: dict[str, Any] = {"model": self.name, **options}
        fields |= {name: _as_json(value) for name, value in given.items() if value is not None}
        for name in ("image", "mask"):
            if name in fields:
                fields[name] = _png(fields[name])
        return self._sample(fields, on_preview, previews if on_preview else 0)

    async def sample_async(self, *args: Any, **options: Any) -> list[Image.Image]:
        """sample in a thread, so that the event loop goes on. Cancelling it does not end the work."""
        return await asyncio.to_thread(self.sample, *args, **options)

    @abstractmethod
    def _sample(
        self, fields: dict[str, Any], on_preview: Callable[[Preview], None] | None, previews: int
    ) -> list[Image.Image]: ...

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
        fields |= {name: base64.b64encode(fields[name]).decode() for name in ("image", "mask") if name in fields}
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


def _as_json(value: Any) -> Any:
    """Keys of JSON are text, and digits that name no class are an index."""
    if isinstance(value, dict):
        return {str(name): weight for name, weight in value.items()}
    return [_as_json(each) for each in value] if isinstance(value, list | tuple) else value


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
