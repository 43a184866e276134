"""What asks the real server on a GPU runs on a CPU, too."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import torch
from aiohttp import test_utils, web

from benchmarks.gpu import company, device, pipelines, served
from tests.benchmarks.results import read

pytestmark = [
    pytest.mark.skipif(not device.DRY, reason="is a dry run, for machines without a CUDA device"),
    pytest.mark.usefixtures("out"),
]


@pytest.mark.parametrize("status", [503, 500])
def test_only_refusals_count_as_refused(out: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    asked = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1  # requests come one by one, then all at once
        png = pipelines.png(torch.zeros(2, 2, 3, dtype=torch.uint8))
        return web.Response(body=png, status=status if asked == 2 * served.CONCURRENT else 200)

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/generate", answer)
        async with test_utils.TestServer(app) as server, aiohttp.ClientSession(server.make_url("")) as session:
            await served.compare_alone_with_concurrent(served.ImageClient(session))

    monkeypatch.setattr(served, "CONCURRENT", 3)
    if status == 503:
        asyncio.run(run())
        assert [(r["images"], r["refused"], r["max"]) for r in read(out)] == [(3, 1, 0)]
    else:
        with pytest.raises(RuntimeError, match="500"):
            asyncio.run(run())


def test_ordinary_requests_are_timed_in_company(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class Client:
        async def picture(self, body: dict[str, Any] | None = None, **fields: Any) -> np.ndarray:
            asked.append(body or fields)
            await asyncio.sleep(0.001)
            return np.zeros(1)

    async def swapped(session: object, number: int) -> None:
        await asyncio.sleep(0.01)

    monkeypatch.setattr(company, "SECONDS", 0.01)
    monkeypatch.setattr(company, "swap", swapped)
    asyncio.run(company.measure_all(Client(), None))  # pyright: ignore[reportArgumentType]
    *found, memory = read(out)
    assert [result["beside"] for result in found] == [
        "one more of them", "an edit", "a deterministic image", *["a swap"] * company.SWAPS
    ]  # fmt: skip
    assert all(result["requests"] >= company.CLIENTS for result in found)
    assert memory["free_GiB"] == 0
    assert any("mask" in fields for fields in asked)
    assert any("deterministic" in fields for fields in asked)


def test_the_stamps_of_a_start_are_the_lines_of_the_engine() -> None:
    line = {
        "time": "2026-11-30T10:00:05.500+00:00",
        "process": "engine",
        "logger": "service.registry",
        "message": "a",
    }
    log = "\n".join(["no JSON", json.dumps(line), json.dumps(line | {"process": "worker"})])
    assert served.stamps(log, 1796032800.0) == [(5.5, "a")]


def test_a_reference_is_a_picture() -> None:
    picture = served.reference("dit", [3], [5])
    assert (picture.shape, picture.dtype) == ((1, 32, 32, 3), np.uint8)
    assert picture.std() > 20
