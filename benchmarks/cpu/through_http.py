"""Compares the service under eight clients, which ask without a pause, with its network alone."""

import asyncio
import json
import statistics
import time
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import torch

from benchmarks.client import Server, metric, serving
from benchmarks.cpu.variants import BACKENDS, build, inputs, seconds_of
from benchmarks.serving.client import Client
from benchmarks.serving.load import OK, Answer, repeat
from benchmarks.serving.servers import http_post
from benchmarks.serving.workloads import Closed, Kind
from models.checkpoint import load_checkpoint
from service.registry import choose_dtype
from training.checkpoints import find_checkpoint

CLIENTS, STEPS = 8, 20
QUALITIES = ("draft", "default", "best")
JOIN_SECONDS = 1.0  # from the start of the clients until all of them have a request in the engine
QUALITY_PART = 0.25  # of the service's seconds in a round, for each quality and number of clients
TAKE_OVER_SECONDS = 120.0  # at most, until the backend serves; it may have to trace the network first


async def measure_service(
    name: str, backend: str, rounds: int, seconds: float, alone_seconds: float
) -> dict[str, Any]:
    """Medians of rounds. In each the service is measured, then its network alone with as many rows a forward.

    Returns:
        "images", "served" and "alone" a second (the last two are rows), "rows_a_step", and "share", which is served
        over alone. By quality, "images_of" has images a second of all clients, and "seconds_of" the latency of one.

    Args:
        backend: one of BACKENDS.
        seconds, alone_seconds: of the service and of the network, in a round.
    """
    network, config = load_checkpoint(find_checkpoint(name))
    dtype = str(choose_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    forward = build(f"{BACKENDS[backend]} {dtype}", network, config)
    models, rounds_alone, rounds_of_qualities = (
        json.dumps({name: {"checkpoint": str(find_checkpoint(name))}}),
        [],
        [],
    )
    async with serving(models=models, backend=backend, log_level="error") as server:
        await wait_for_backend(server, name, backend)
        for _ in range(rounds):
            live, mean_rows = await service_rate(server, name, seconds)
            rows = round(mean_rows)
            alone = rows / seconds_of(forward, inputs(config, rows), alone_seconds)
            rounds_alone.append((live / STEPS, mean_rows, live, alone, live / alone))
            rounds_of_qualities.append(await by_quality(server, name, QUALITY_PART * seconds))
    columns = ("images", "rows_a_step", "served", "alone", "share")
    found: dict[str, Any] = dict(zip(columns, medians(rounds_alone), strict=True))
    for column, of_rounds in zip(("images_of", "seconds_of"), zip(*rounds_of_qualities, strict=True), strict=True):
        found[column] = dict(zip(QUALITIES, medians(of_rounds), strict=True))
    return found


def medians(rounds: Iterable[Iterable[float]]) -> Iterable[float]:
    return map(statistics.median, zip(*rounds, strict=True))


async def by_quality(server: Server, model: str, seconds: float) -> tuple[list[float], list[float]]:
    """For each of QUALITIES, images a second of CLIENTS clients, and the median latency of a single client.

    Raises:
        RuntimeError: no request got its image.
    """
    rates, latencies = [], []
    for quality in QUALITIES:
        target = f"/generate?model={model}&class=3&quality={quality}"
        for clients, found in ((CLIENTS, rates), (1, latencies)):
            answers = [a for a in await closed_loop(server, target, clients, seconds) if a.outcome == OK]
            if not answers:
                raise RuntimeError(f"no request of quality {quality} got its image in {seconds:g} s")
            rate = len(answers) / max(answer.due + answer.latency for answer in answers)
            found.append(statistics.median(answer.latency for answer in answers) if clients == 1 else rate)
    return rates, latencies


async def closed_loop(server: Server, target: str, clients: int, seconds: float) -> list[Answer]:
    """Run clients that ask for `target` without a pause."""
    request = http_post(target, f"127.0.0.1:{server.port}")
    workload = Closed("cpu", clients, Kind("", STEPS), seconds)
    with closing(Client("127.0.0.1", server.port)) as client:
        return await repeat(client, workload, lambda _: request)


async def wait_for_backend(server: Server, model: str, backend: str) -> None:
    """Return when the backend serves the model.

    Raises:
        TimeoutError: another one still does after TAKE_OVER_SECONDS.
    """
    async with asyncio.timeout(TAKE_OVER_SECONDS):
        while await backend_of(server, model) != backend:
            await asyncio.sleep(0.1)


async def backend_of(server: Server, model: str) -> Any:
    async with server.session.get("/models") as answer:
        return next(each for each in (await answer.json())["models"] if each["name"] == model)["backend"]


async def service_rate(server: Server, model: str, seconds: float) -> tuple[float, float]:
    """Rows a second and mean rows of a step, with CLIENTS clients whose images take STEPS unguided steps."""
    target = f"/generate?model={model}&class=3&steps={STEPS}&sampler=euler&guidance=1"
    clients = asyncio.create_task(closed_loop(server, target, CLIENTS, seconds + 2 * JOIN_SECONDS))
    await asyncio.sleep(JOIN_SECONDS)
    before, started = await step_counters(server, model), time.monotonic()
    await asyncio.sleep(seconds)
    rows, steps = (new - old for new, old in zip(await step_counters(server, model), before, strict=True))
    took = time.monotonic() - started
    await clients
    return rows / took, rows / steps


async def step_counters(server: Server, model: str) -> tuple[float, float]:
    """Rows and steps so far; the engine updates these metrics ten times a second."""
    async with server.session.get("/metrics") as answer:
        text = await answer.text()
    rows, steps = (metric(text, f"diffusion_step_rows_{part}", model=model) for part in ("sum", "count"))
    return rows, steps
