"""The machine that measured something, in one line: a time means nothing without it."""

import os
import platform
from pathlib import Path

import torch


def describe_machine() -> str:
    """Processor (and GPU), cores, threads that torch uses, torch's version."""
    parts = [processor(), f"{os.cpu_count()} cores", f"{torch.get_num_threads()} torch threads"]
    if torch.cuda.is_available():
        parts.insert(0, torch.cuda.get_device_name())
    return ", ".join([*parts, f"torch {torch.__version__}"])


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
