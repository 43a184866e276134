"""A model of a running service, as Python programs see it. See stepwise.py."""

from __future__ import annotations

import base64
import io
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from PIL import Image

from models.extras import how_to_install
from service.errors import FieldError, ServiceError, UnknownModel
from service.python_api import FILES, Preview, Sampler
from service.wire.messages import KINDS

if TYPE_CHECKING:
    import httpx

SILENCE = 60.0  # seconds without a byte that end a request where nothing is tried again


class RemoteModel(Sampler):
    """A model of a running service; see connect."""

    def __init__(self, url: str, model: str, key: str, patience: float):
        try:
            import httpx
        except ImportError as error:
            raise ImportError(f"stepwise.connect needs httpx: {how_to_install('client')}") from error
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(
            base_url=url.rstrip("/"), headers=headers, timeout=httpx.Timeout(patience or SILENCE)
        )
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
            raise UnknownModel.field("model", message)
        return models[model]

    def close(self) -> None:
        """Also what the end of a `with` block does."""
        self._http.close()

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sample(self, fields: dict[str, Any], on_preview: Callable[[Preview], None] | None) -> list[Image.Image]:
        fields = _as_json(fields)
        if on_preview is None:
            with self._answer("POST", "/generate", "application/json", fields) as answer:
                return [_decoded(image["png_base64"]) for image in json.loads(answer.read())["images"]]
        images: dict[int, Image.Image] = {}
        with self._answer("POST", "/generate", "text/event-stream", fields) as answer:
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
        """The response of the service; a refusal with a retry_after is tried again within `patience` seconds.

        Raises:
            ServiceError: any other refusal, or the last one.
        """
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
    return fields | {name: base64.b64encode(fields[name]).decode() for name in FILES if name in fields}


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


def _decoded(png: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    image.load()
    return image
