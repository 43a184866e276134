"""The real server over HTTP: the time until it is ready, the error of its images, the latency of a lone request.

python -m benchmarks.gpu.served

The reference is the plain loop on the CPU in float32.
"""

import argparse
import asyncio
import io
import json
import os
import signal
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import torch
from PIL import Image

from benchmarks.client import Server, serving
from benchmarks.gpu import company
from benchmarks.gpu.device import DEVICE, DRY, free_gib, model_of, parse
from benchmarks.gpu.results import record_failures, record_result
from benchmarks.networks import SHIPPED
from models.sampling import Guidance, sample, to_uint8

SETTINGS = {"device": DEVICE.type, "max_requests": 4096, "log_level": "debug", "log_format": "json"}
SETTINGS["keep_alive_seconds"] = 60  # the reference blocks the client's loop for longer than the default
SMALL = {"dtype": "float32", "max_rows": 8, "threads": 1, "http_workers": 1}
CLASSES = 2 if DRY else 10
CONCURRENT = 8 if DRY else 64  # requests at once
REPEATS = 3 if DRY else 60


class Refused(Exception):
    """The server refused the request."""


class ImageClient:
    """Asks the server for images."""

    def __init__(self, session: aiohttp.ClientSession):
        self._session = session
        self.timing = ""  # the Server-Timing header of the last answer

    async def picture(self, body: dict[str, Any] | None = None, **fields: Any) -> np.ndarray:
        """The image, uint8 [H, W, C]; fields are those of the query, and body is JSON in its place.

        Raises:
            Refused: the status is 429 or 503.
            RuntimeError: it is another one, but not 200.
        """
        query = {name: str(value) for name, value in fields.items()}
        async with self._session.post("/generate", params=query, json=body) as answer:
            content = await answer.read()
            if answer.status != 200:
                error = Refused if answer.status in (429, 503) else RuntimeError
                raise error(f"{answer.status}: {content[:300]!r}")
            self.timing = answer.headers.get("Server-Timing", "")
        return np.atleast_3d(np.array(Image.open(io.BytesIO(content))))


def reference(name: str, labels: list[int], seeds: list[int]) -> np.ndarray:
    """Images of the plain sampling loop on the CPU, uint8 [n, H, W, C]."""
    model, config = model_of(name)
    how = config.default_sampling
    table = config.table(how["sampler"], how["steps"], how["spacing"])
    guidance = Guidance(how["guidance"], *how["guidance_interval"], trained=config.guidance_range)
    rows = torch.tensor(labels), torch.tensor(seeds)
    return to_uint8(sample(model, table, *rows, config.image_shape, guidance=guidance)).permute(0, 2, 3, 1).numpy()


def difference(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Absolute differences of two uint8 arrays of one shape, in levels of 0..255."""
    levels = np.abs(a.astype(int) - b.astype(int))
    mean, p99 = round(float(levels.mean()), 3), int(np.percentile(levels, 99))
    return {"mean": mean, "p99": p99, "max": int(levels.max())}


async def compare_with_cpu(client: ImageClient, name: str) -> None:
    labels = list(range(CLASSES))
    seeds = [1000 + label for label in labels]
    fields = [{"model": name, "class": label, "seed": seed} for label, seed in zip(labels, seeds, strict=True)]
    images = np.stack([await client.picture(**each) for each in fields])
    facts = difference(images, reference(name, labels, seeds))
    record_result("images over HTTP against the CPU in float32", model=name, **facts, spread=int(images.std()))


async def compare_alone_with_concurrent(client: ImageClient) -> None:
    """Notes how the images of concurrent requests differ from those of the same requests one by one.

    Some of the concurrent ones may be refused. They are counted, and every other error is raised.
    """
    fields = [
        {
            "model": SHIPPED[i % 2],
            "class": i % 10,
            "seed": 5000 + i,
            "steps": (5, 10, 20)[i % 3],
            "guidance": (1.0, 2.0)[i // 2 % 2],
        }
        for i in range(CONCURRENT)
    ]
    alone = [await client.picture(**each) for each in fields]

    async def picture_unless_refused(each: dict[str, Any]) -> np.ndarray | None:
        with suppress(Refused):
            return await client.picture(**each)

    concurrent = await asyncio.gather(*map(picture_unless_refused, fields))
    pairs = [(a, b) for a, b in zip(alone, concurrent, strict=True) if b is not None]
    if not pairs:
        raise RuntimeError(f"all {CONCURRENT} concurrent requests were refused")
    ones, others = (np.stack(images) for images in zip(*pairs, strict=True))
    facts = difference(ones, others)
    record_result("alone against company", images=CONCURRENT, refused=CONCURRENT - len(pairs), **facts)


async def time_alone(client: ImageClient, name: str) -> None:
    times = []
    for seed in range(REPEATS):
        began = time.perf_counter()
        await client.picture(None, model=name, seed=seed, **{"class": 1})
        times.append(1000 * (time.perf_counter() - began))
    p50, p95 = (round(float(value), 2) for value in np.percentile(times, (50, 95)))
    record_result("latency of a lone request", model=name, p50_ms=p50, p95_ms=p95, server_timing=client.timing)


def stamps(log: str, began: float) -> list[tuple[float, str]]:
    """Seconds from the start to each of the engine's lines: imports, context, weights, each row count, warm."""
    found = []
    for line in log.splitlines():
        with suppress(json.JSONDecodeError):
            said = json.loads(line)
            if said["process"] == "engine" and said["logger"].startswith("service."):
                at = datetime.fromisoformat(said["time"]).timestamp() - began
                found.append((round(at, 2), said["message"]))
    return found


async def measure() -> None:
    began, now = time.monotonic(), time.time()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(os.environ.get("OUT", folder)) / "server.log"  # kept with the results: it says why a start fails
        settings = SETTINGS | (SMALL if DRY else {}) | {"checkpoints": folder, "admin_key": company.KEY}
        settings["models"] = json.dumps(company.stage(Path(folder)))
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(serving(log=stack.enter_context(log.open("wb")), **settings))
            ready = round(time.monotonic() - began, 1)
            lines = stamps(log.read_text(), now)
            async with running.session.get("/info") as answer:
                record_result("server", ready_s=ready, stamps=lines, info=await answer.json())
            record_result("memory of the server", after="start", free_GiB=free_gib())
            await _ask(running)


async def _ask(running: Server) -> None:
    client = ImageClient(running.session)
    for name in SHIPPED:
        with record_failures("images over HTTP", model=name):
            await compare_with_cpu(client, name)
    with record_failures("alone against company"):
        await compare_alone_with_concurrent(client)
    for name in SHIPPED:
        with record_failures("latency of a lone request", model=name):
            await time_alone(client, name)
    await company.measure_all(client, running.session)


def main() -> None:
    parse(argparse.ArgumentParser(description=__doc__))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a time limit ends the server, too
    asyncio.run(measure())


if __name__ == "__main__":
    main()
