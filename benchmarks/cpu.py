"""Rows a second on a CPU: the networks alone, and the whole service with eight clients that ask without a pause.

    python -m benchmarks.cpu

A row is one evaluation of a network. The service runs the shipped checkpoints, in bfloat16 where the processor has
it. Rounds of both take turns, because a machine is not equally fast at all times. The machine must be quiet.
"""

import argparse
import asyncio
import json
import statistics
import time

import torch
from torch import nn

from benchmarks.client import Server, metric, serving
from benchmarks.serving.client import Client
from benchmarks.serving.load import repeat
from benchmarks.serving.servers import http_post
from benchmarks.serving.workloads import Closed, Kind
from models.checkpoint import load_checkpoint
from service.registry import choose_dtype
from training.checkpoints import find_checkpoint

MODELS = ("dit", "unet")
ROWS = (1, 2, 4, 8, 16)
CLIENTS, STEPS = 8, 20
ROUNDS = 3
SECONDS = 8.0  # of a round in the service
FORWARD_SECONDS = 2.0  # of a round of one row count


class Network:
    """A shipped network in one dtype, without a service."""

    def __init__(self, name: str, dtype: torch.dtype):
        model, config = load_checkpoint(find_checkpoint(name))
        self.model: nn.Module = model.to(dtype)
        self.shape, self.dtype = config.image_shape, dtype

    @torch.inference_mode()
    def rows_a_second(self, rows: int, seconds: float = FORWARD_SECONDS) -> float:
        """From the median time of a forward."""
        x = torch.randn(rows, *self.shape, dtype=self.dtype)
        t, y = torch.full((rows,), 500.0), torch.zeros(rows, dtype=torch.long)
        times, until = list[float](), time.monotonic() + seconds
        while time.monotonic() < until or len(times) < 5:
            started = time.perf_counter()
            self.model(x, t, y)
            times.append(time.perf_counter() - started)
        return rows / statistics.median(times[2:])


async def served(server: Server, model: str, seconds: float = SECONDS) -> tuple[float, float]:
    """Rows a second and mean rows of a step, with CLIENTS clients that want STEPS unguided steps."""
    target = f"/generate?model={model}&class=3&steps={STEPS}&sampler=euler&guidance=1"
    request = http_post(target, f"127.0.0.1:{server.port}")
    kind = Kind(model, STEPS, 1.0)
    client = Client("127.0.0.1", server.port)
    clients = asyncio.create_task(repeat(client, Closed("cpu", CLIENTS, kind, seconds + 2.0), lambda _: request))
    await asyncio.sleep(1.0)  # until all of them are in
    before, started = await counts(server, model), time.monotonic()
    await asyncio.sleep(seconds)
    rows, steps = (new - old for new, old in zip(await counts(server, model), before, strict=True))
    took = time.monotonic() - started
    await clients
    client.close()
    return rows / took, rows / steps


async def counts(server: Server, model: str) -> tuple[float, float]:
    """Rows and steps so far; the engine hands them over ten times a second."""
    async with server.session.get("/metrics") as answer:
        text = await answer.text()
    rows, steps = (metric(text, f"diffusion_step_rows_{part}", model=model) for part in ("sum", "count"))
    return rows, steps


def alone() -> str:
    """A table of the networks by rows."""
    head = " | ".join(f"{rows} rows" for rows in ROWS)
    lines = [f"| rows a second | {head} |", "|---" * (len(ROWS) + 1) + "|"]
    for name in MODELS:
        for dtype in (torch.float32, torch.bfloat16):
            network = Network(name, dtype)
            cells = " | ".join(f"{network.rows_a_second(rows):,.0f}" for rows in ROWS)
            lines.append(f"| {name}, {str(dtype).removeprefix('torch.')} | {cells} |")
    return "\n".join(lines)


async def beside(name: str) -> str:
    """A row of the table of the service, the median of rounds."""
    network = Network(name, choose_dtype("auto", torch.device("cpu")))
    rounds, models = [], json.dumps({name: {"checkpoint": str(find_checkpoint(name))}})
    async with serving(models=models, log_level="error") as server:
        for _ in range(ROUNDS):
            live, mean_rows = await served(server, name)
            rounds.append((live, mean_rows, network.rows_a_second(round(mean_rows))))
    live, mean_rows, bare = (statistics.median(column) for column in zip(*rounds, strict=True))
    share = statistics.median(live / bare for live, _, bare in rounds)
    return f"| {name} | {mean_rows:.1f} | {bare:,.0f} | {live:,.0f} | {100 * share:.0f} % |"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n\n{alone()}\n")
    print("| through HTTP | mean rows of a step | the network alone, rows a second | the service | share |")
    print("|---|---|---|---|---|")
    for name in MODELS:
        print(asyncio.run(beside(name)))


if __name__ == "__main__":
    main()
