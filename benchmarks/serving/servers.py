"""Starts the servers that are measured. Each has processes of its own and the same simulated device."""

import hashlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from benchmarks import ROOT
from benchmarks.client import Server, serving, started
from benchmarks.serving.workloads import Device, Kind, Workload

ENVIRONMENTS = ROOT / "build" / "serving"
OTHERS = Path(__file__).parent / "others"
CONFIG = {
    "arguments": {"image_size": 32, "image_channels": 3, "num_classes": 10},
    "class_names": list("0123456789"),
}
MODULES = {"fastapi": "fastapi_batcher", "litserve": "litserve_server"}
SYSTEMS = ("stepwise", *MODULES)
ENGINE, WORKER = "service.engine_process", "service.web.worker"  # this service's processes by their modules

# The others are late at 70 % already, do not notice that a client leaves, and cannot answer in npy.
NOT_OTHERS = ("W2-90", "W6", "H-npy")


def can_run(system: str, workload: Workload) -> bool:
    return system == "stepwise" or workload.name not in NOT_OTHERS


@asynccontextmanager
async def run_server(system: str, device: Device, **more: Any) -> AsyncIterator[Server]:
    """One of SYSTEMS, ready for requests; more: further settings of this service."""
    if system == "stepwise":
        simulated = {name: {"t0_ms": cost.t0_ms, "t1_ms": cost.t1_ms} for name, cost in device.costs.items()}
        models = {name: {"config": CONFIG, "simulate": cost} for name, cost in simulated.items()}
        settings: dict[str, Any] = {"models": json.dumps(models), "device": "cpu", "max_rows": device.rows}
        async with serving(**(settings | {"log_level": "error", "shed_load": True} | more)) as server:
            yield server
        return
    costs = json.dumps({name: [cost.t0_ms, cost.t1_ms] for name, cost in device.costs.items()})
    command = [str(python_of(system)), "-m", f"benchmarks.serving.others.{MODULES[system]}"]
    command += ["--costs", costs, "--rows", str(device.rows)]
    # LitServe prints a line for every late request
    async with started(command, dict(os.environ), "/health", stdout=subprocess.DEVNULL) as server:
        yield server


def python_of(system: str) -> Path:
    """The interpreter of a system's own environment, which is created at its first use."""
    wanted = OTHERS / f"{system}.txt"
    digest = hashlib.sha256(wanted.read_bytes() + sys.version.encode()).hexdigest()[:8]
    folder = ENVIRONMENTS / f"{system}-{digest}"
    done = folder / ".done"
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-r", str(wanted)], check=True)
        done.touch()
    return folder / "bin" / "python"


def write_request(system: str, port: int, kind: Kind, form: str = "png", headers: str = "") -> bytes:
    """The bytes of a POST /generate; form: png or npy, headers: further lines, each with its line end."""
    fields = {"model": kind.model, "steps": kind.steps, "guidance": kind.guidance}
    if system == "litserve":
        return http_post("/generate", f"127.0.0.1:{port}", json.dumps(fields).encode())
    if system == "stepwise":
        fields |= {"class": 0, "sampler": "ddim", "n": kind.images, "format": form}
    return http_post(f"/generate?{urlencode(fields)}", f"127.0.0.1:{port}", headers=headers)


def http_post(target: str, host: str, body: bytes = b"", headers: str = "") -> bytes:
    """The bytes of a POST of JSON, or of nothing; headers: further lines, each with its line end."""
    content = "Content-Type: application/json\r\n" if body else ""
    head = f"POST {target} HTTP/1.1\r\nHost: {host}\r\n{headers}{content}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
