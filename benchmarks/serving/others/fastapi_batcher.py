"""A plain FastAPI service that batches whole requests of equal settings, the longest waiting first.

It takes whatever waits when the device is free, so an idle device never waits for a batch to fill.
"""

import argparse
import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, Protocol

import uvicorn
from fastapi import FastAPI, Response

from benchmarks.serving.others.device import Pipelines, Settings

Waiting = tuple[Settings, "asyncio.Future[bytes]"]


class Pipeline(Protocol):
    """What runs the batches."""

    def rows(self, settings: Settings) -> int:
        """Of an image at a step, at most."""
        ...

    def run(self, settings: Settings, images: int) -> list[bytes]:
        """Run whole requests of equal settings; blocks, and returns a PNG for each image."""
        ...


class Batcher:
    """A queue in front of a pipeline, which runs one batch after another."""

    def __init__(self, pipelines: Pipeline, max_rows: int):
        self._pipelines, self._max_rows = pipelines, max_rows
        self._waiting: deque[Waiting] = deque()
        self._has_waiting = asyncio.Event()

    async def submit(self, settings: Settings) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((settings, answer))
        self._has_waiting.set()
        return await answer

    async def run(self) -> None:
        while True:
            await self._has_waiting.wait()
            batch = self._next_batch()
            pictures = await asyncio.to_thread(self._pipelines.run, batch[0][0], len(batch))
            for (_, answer), picture in zip(batch, pictures, strict=True):
                if not answer.done():  # its client may have gone
                    answer.set_result(picture)
            if not self._waiting:
                self._has_waiting.clear()

    def _next_batch(self) -> list[Waiting]:
        settings = self._waiting[0][0]
        most = max(1, self._max_rows // self._pipelines.rows(settings))
        batch = [waiting for waiting in self._waiting if waiting[0] == settings][:most]
        taken = {id(answer) for _, answer in batch}
        self._waiting = deque(waiting for waiting in self._waiting if id(waiting[1]) not in taken)
        return batch


def create_app(pipelines: Pipeline, max_rows: int) -> FastAPI:
    batcher = Batcher(pipelines, max_rows)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(batcher.run())
        yield
        running.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/generate")
    async def generate(model: str, steps: int, guidance: float) -> Response:
        return Response(await batcher.submit(Settings(model, steps, guidance)), media_type="image/png")

    return app


def serve(pipelines: Pipeline, max_rows: int, port: int, http: Literal["auto", "httptools"] = "httptools") -> None:
    app = create_app(pipelines, max_rows)
    uvicorn.run(app, port=port, loop="uvloop", http=http, log_level="warning", access_log=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--costs", required=True)
    parser.add_argument("--rows", type=int, required=True)
    given = parser.parse_args()
    serve(Pipelines(given.costs, given.rows), given.rows, given.port)


if __name__ == "__main__":
    main()
