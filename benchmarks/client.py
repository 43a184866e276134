"""A real server in a process of its own, and what the load tests ask it and the kernel about it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

import aiohttp

from benchmarks import ROOT, process_tree

START_SECONDS = 600.0  # a start that takes longer has failed


@dataclass(frozen=True)
class Server:
    """A server and a session of connections to it; the session opens as many as are needed."""

    process: subprocess.Popen[bytes]
    session: aiohttp.ClientSession
    port: int

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name with those labels; raises KeyError where there is none."""
        async with self.session.get("/metrics") as answer:
            return metric(await answer.text(), name, **labels)

    def resident_mib(self) -> float:
        return process_tree.status_sum(self.process.pid, "VmRSS") / 1024

    def threads(self) -> int:
        return process_tree.status_sum(self.process.pid, "Threads")

    def open_files(self) -> int:
        return process_tree.open_files(self.process.pid)


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
async def serving(*, log: IO[bytes] | None = None, **settings: Any) -> AsyncIterator[Server]:
    """`python run.py serve` with these DIFFUSION_ settings, ready until the block ends. log: for its lines."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DIFFUSION_")}
    named = {f"DIFFUSION_{name.upper()}": str(value) for name, value in settings.items()}
    async with started([sys.executable, "run.py", "serve"], kept | named, stderr=log) as server:
        yield server


@asynccontextmanager
async def started(
    command: list[str],
    environment: dict[str, str],
    ready: str = "/readyz",
    stdout: int | None = None,
    stderr: IO[bytes] | None = None,
) -> AsyncIterator[Server]:
    """A server's command with --port, ready when that path answers 200; ended when the block ends."""
    with reserved_port() as port:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=ROOT,
            env=environment,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        connector = aiohttp.TCPConnector(limit=0)
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as session:
                await _wait_until_ready(process, session, ready)
                yield Server(process, session, port)
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # LitServe leaves children behind


async def _wait_until_ready(process: subprocess.Popen[bytes], session: aiohttp.ClientSession, path: str) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(START_SECONDS):  # a server may also accept the connection and never answer
            while process.poll() is None:
                with suppress(aiohttp.ClientConnectionError):
                    async with session.get(path) as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.05)
    raise RuntimeError(f"the server did not become ready: its exit code is {process.poll()}")
