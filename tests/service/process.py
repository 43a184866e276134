"""`python run.py serve` in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx

from benchmarks.client import reserved_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


def command(port: int) -> list[str]:
    return [sys.executable, "run.py", "serve", "--port", str(port)]


def environment(**settings: Any) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DIFFUSION_")}
    return kept | {"OMP_NUM_THREADS": "1"} | {f"DIFFUSION_{k.upper()}": str(v) for k, v in settings.items()}


@contextmanager
def serving(checkpoints: Path, log: IO[str], **changes: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that is ready, and its address; it is killed when the block ends."""
    settings = environment(checkpoints=checkpoints, device="cpu", max_rows=4, **changes)
    with reserved_port() as port:
        process = subprocess.Popen(command(port), cwd=ROOT, env=settings, stdout=log, stderr=log, text=True)
        url = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            assert process.poll() is None, "the server ended"
            return status(f"{url}/readyz") == 200

        try:
            wait_until(ready)
            yield process, url
        finally:
            process.kill()
            process.wait()


def status(url: str) -> int:
    """The status of a GET; 0 where nobody listens."""
    try:
        return httpx.get(url, timeout=60).status_code
    except httpx.TransportError:
        return 0
