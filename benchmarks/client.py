"""A real server in a process of its own, and what the load tests ask it and the kernel about it."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).parents[1]
START_SECONDS = 120.0


@dataclass(frozen=True)
class Server:
    """A server and a session of connections to it; the session opens as many as are needed."""

    process: subprocess.Popen[bytes]
    session: aiohttp.ClientSession

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name with those labels; raises KeyError where there is none."""
        async with self.session.get("/metrics") as answer:
            return metric(await answer.text(), name, **labels)

    def resident_mib(self) -> float:
        return self._status("VmRSS") / 1024

    def threads(self) -> int:
        return self._status("Threads")

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def _status(self, field: str) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def metric(exposition: str, name: str, **labels: str) -> float:
    """The sum of the samples with that name and those labels in the text of /metrics; KeyError if there is none."""
    lines = [line.rpartition(" ") for line in exposition.splitlines()]
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    named = [(series, value) for series, _, value in lines if series.partition("{")[0] == name]
    found = [float(value) for series, value in named if all(label in series for label in wanted)]
    if not found:
        raise KeyError(name)
    return sum(found)


@contextmanager
def reserved_port() -> Iterator[int]:
    """A local port that the kernel gives to nobody else until the block ends.

    It is bound and not listening, so a server that sets SO_REUSEADDR can still listen on it.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Server]:
    """`python run.py serve` with these DIFFUSION_ settings, ready; ended when the block ends."""
    with reserved_port() as port:
        async with _serving_on(port, settings) as server:
            yield server


@asynccontextmanager
async def _serving_on(port: int, settings: dict[str, Any]) -> AsyncIterator[Server]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DIFFUSION_")}
    named = {f"DIFFUSION_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "run.py", "serve", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=kept | named)
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as session:
            await _ready(process, session)
            yield Server(process, session)
    finally:
        process.terminate()
        process.wait(timeout=60)


async def _ready(process: subprocess.Popen[bytes], session: aiohttp.ClientSession) -> None:
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            async with session.get("/readyz") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.05)
    raise RuntimeError("the server did not become ready")
