"""What edits, deterministic images and swaps of weights do to the latency of ordinary requests over HTTP.

benchmarks.gpu.served runs it on its server.
"""

import asyncio
import base64
import io
import shutil
import time
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import numpy as np
from PIL import Image

from benchmarks.gpu.device import DRY, free_gib
from benchmarks.gpu.results import record_failures, record_result
from models.files import SHIPPED

KEY = "the-key-of-this-benchmark"
CLIENTS = 2 if DRY else 8  # with ordinary requests
SECONDS = 0.5 if DRY else 2.0
SWAPS = 1 if DRY else 3


class Asks(Protocol):
    """benchmarks.gpu.served.ImageClient."""

    async def picture(self, body: dict[str, Any] | None = None, **fields: Any) -> np.ndarray: ...


def stage(folder: Path) -> dict[str, dict[str, str]]:
    """Copies of the DiT's checkpoint, because a swap needs another folder; returns the models to serve."""
    for number in range(2):
        shutil.copytree(SHIPPED / "dit", folder / f"staged/{number}")
    return {name: {"checkpoint": str(SHIPPED / name)} for name in ("dit", "unet")}


def edit() -> dict[str, Any]:
    """The body of a request that keeps the half of an image."""
    shape = (32, 32, 3)
    mask = np.zeros(shape, np.uint8)
    mask[:16] = 255
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return {"model": "dit", "class": 1, "steps": 10, "image": text(image), "mask": text(mask)}


def text(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


async def ask_until(end: asyncio.Event, client: Asks, body: dict[str, Any] | None, **fields: Any) -> list[float]:
    """Milliseconds of one request after the other."""
    found = []
    while not end.is_set():
        began = time.perf_counter()
        await client.picture(body, **fields)
        found.append(1000 * (time.perf_counter() - began))
    return found


async def measure(
    part: str,
    client: Asks,
    body: dict[str, Any] | None = None,
    another: dict[str, Any] | None = None,
    other: asyncio.Task[None] | None = None,
) -> None:
    """Ordinary requests beside a client with this body or these further fields, for SECONDS or until other ends."""
    end, plain = asyncio.Event(), {"model": "dit", "class": 1, "steps": 10}
    more = {} if body else plain | (another or {})
    asking = [asyncio.create_task(ask_until(end, client, None, **plain)) for _ in range(CLIENTS)]
    asking.append(asyncio.create_task(ask_until(end, client, body, **more)))
    began = time.monotonic()
    await (asyncio.wait({other}) if other else asyncio.sleep(SECONDS))
    seconds = time.monotonic() - began
    end.set()
    *ordinary, others = await asyncio.gather(*asking)
    times, facts = np.concatenate(ordinary), {"seconds": round(seconds, 2), "requests": sum(map(len, ordinary))}
    for name, share in (("p50_ms", 50), ("p99_ms", 99), ("most_ms", 100)):
        facts[name] = round(float(np.percentile(times, share)), 2)
    record_result("latency in company", beside=part, other_p50_ms=round(float(np.median(others)), 2), **facts)


async def swap(session: aiohttp.ClientSession, number: int) -> None:
    """Raises RuntimeError: the service refused it."""
    body, headers = {"checkpoint": f"staged/{number % 2}"}, {"X-API-Key": KEY}
    async with session.put("/admin/models/dit", json=body, headers=headers) as answer:
        if answer.status != 200:
            raise RuntimeError(await answer.text())


async def measure_all(client: Asks, session: aiohttp.ClientSession) -> None:
    for part, body, another in (
        ("one more of them", None, None),
        ("an edit", edit(), None),
        ("a deterministic image", None, {"deterministic": "true"}),
    ):
        with record_failures("latency in company", beside=part):
            await measure(part, client, body, another)
    for number in range(SWAPS):
        with record_failures("latency in company", beside="a swap"):
            swapping = asyncio.create_task(swap(session, number))
            await measure("a swap", client, other=swapping)
            await swapping
    record_result("memory of the server", after=f"{SWAPS} swaps", free_GiB=free_gib())
