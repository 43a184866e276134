"""The machine and the code that are measured, the machine's highest rates, and the cost of a kernel launch.

python -m benchmarks.gpu.machine
"""

import argparse
import os
import platform
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.gpu.device import DEVICE, DRY, ceilings, graph_device, kernel_seconds, parse, wall_seconds
from benchmarks.gpu.results import record_failures, record_result
from benchmarks.versions import output_of, package_version
from training.machine import processor

COMMIT = ROOT / ".whl" / "COMMIT"  # written by prepare.sh, because a copy may lack its repository
PACKAGES = ("torch", "triton", "numpy", "fastapi", "uvicorn", "pydantic", "msgspec", "uvloop", "aiohttp", "pytest")
SMI = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit", "--format=csv,noheader"]


def commit() -> str:
    """The commit, and the files that differ from it; empty where neither git nor prepare.sh tells."""
    if head := output_of(["git", "rev-parse", "HEAD"]):
        return f"{head}\n{output_of(['git', 'status', '--porcelain'])}".strip()
    return COMMIT.read_text().strip() if COMMIT.exists() else ""


def versions() -> dict[str, Any]:
    found = {name: package_version(name) for name in PACKAGES}
    found |= {"python": platform.python_version(), "cores": os.cpu_count(), "cpu": processor()}
    if not DRY:
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "smi": output_of(SMI)}
        found |= {"cudnn": torch.backends.cudnn.version()}
    return found | {"commit": commit()}


def main() -> None:
    parse(argparse.ArgumentParser(description=__doc__))
    with record_failures("versions"):
        record_result("versions", **versions())
    with record_failures("ceilings"):
        peaks = ceilings()
        record_result(
            "ceilings",
            copy_TB_s=round(peaks["bytes"] / 1e12, 3),
            bf16_TFLOP_s=round(peaks["flops"] / 1e12, 1),
        )
    with record_failures("host costs"):
        numbers = torch.zeros(64, device=DEVICE)
        from_python = wall_seconds(lambda: numbers.add_(1), 2000)
        in_a_graph = kernel_seconds(graph_device(), lambda: numbers.add_(1))
        record_result(
            "host costs", eager_launch_us=round(1e6 * from_python, 2), graph_launch_us=round(1e6 * in_a_graph, 2)
        )


if __name__ == "__main__":
    main()
