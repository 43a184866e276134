"""Compares how fast the networks run on a CPU, by library and precision, and how fast the service is over HTTP.

    python -m benchmarks.cpu [--quick] [--compile] [--only dit unet full-dit full-unet http]

dit and unet are the shipped networks, the full ones have the default sizes and random weights. http is the whole
service with eight clients. All parts together take ten minutes. No other program may be busy meanwhile.

The figures are kept in docs/cpu.json, part by part. The tables of docs/cpu.md are made from it; --report does only
that.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks import ROOT, process_tree
from benchmarks.cpu import report
from benchmarks.cpu.through_http import BACKENDS, measure_service
from benchmarks.cpu.variants import BASELINE, Forward, available_variants, build, check, compare, inputs
from benchmarks.networks import SHIPPED, full_size_network, shipped_network
from benchmarks.versions import package_version, short_commit
from models.checkpoint import ModelConfig
from training.machine import processor

FULL_SIZE = {"full-dit": "dit", "full-unet": "unet"}
HTTP = "http"
PARTS = (*SHIPPED, *FULL_SIZE, HTTP)
PACKAGES = ("torch", "openvino", "onnxruntime")


class RunSettings(NamedTuple):
    """What is measured and for how long."""

    counts: tuple[int, ...] = (1, 2, 4, 8, 16)  # rows of a forward
    rounds: int = 3  # in each, every variant is measured once; the medians count
    seconds: float = 0.4  # of a network in a round
    served_seconds: float = 8.0  # of the service in a round


QUICK = RunSettings(counts=(1, 8), rounds=1, seconds=0.1, served_seconds=1.0)


def network_of(name: str) -> tuple[nn.Module, ModelConfig]:
    """One of SHIPPED or FULL_SIZE, in float32."""
    return shipped_network(name) if name in SHIPPED else full_size_network(FULL_SIZE[name])


def usable_variants(name: str, network: nn.Module, config: ModelConfig, compiled: bool) -> dict[str, Forward]:
    """The variants that give the network's images, by name; prints which others are left out, and why."""
    forwards, given = dict[str, Forward](), inputs(config, 2)
    for variant in available_variants(compiled):
        try:
            forward = build(variant, network, config)
            check(forward, forwards.get(BASELINE, forward), given)
        except Exception as error:  # somebody else's compiler may raise anything
            print(f"{name}: {variant} is left out: {type(error).__name__}: {error}", flush=True)
        else:
            forwards[variant] = forward
    return forwards


def measure(part: str, plan: RunSettings, compiled: bool) -> dict[str, Any]:
    """The figures of one of PARTS, as they are kept in cpu.json."""
    if part == HTTP:
        return {"served": {name: through_http(name, plan) for name in SHIPPED}}
    network, config = network_of(part)
    forwards = usable_variants(part, network, config, compiled)
    return {"rows": {part: compare(forwards, config, plan.counts, plan.rounds, plan.seconds)}}


def through_http(name: str, plan: RunSettings) -> dict[str, dict[str, float]]:
    """The figures of the service by backend, for those backends that this machine has."""
    have = [
        backend for backend, library in BACKENDS.items() if any(library in each for each in available_variants())
    ]
    turns = (plan.rounds, plan.served_seconds, plan.seconds)
    return {backend: asyncio.run(measure_service(name, backend, *turns)) for backend in have}


def measured_at(elsewhere_cores: float) -> dict[str, Any]:
    return {
        "commit": short_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": {name: number for name in PACKAGES if (number := package_version(name))},
        "elsewhere_cores": round(elsewhere_cores, 2),
    }


def run(parts: Iterable[str], plan: RunSettings, compiled: bool, path: Path) -> None:
    """Measure the parts, and save the figures of each at once; those of other parts stay in the file."""
    for part in parts:
        used, began = other_programs_seconds(), time.monotonic()
        print(f"{part} ...", flush=True)
        found = measure(part, plan, compiled)
        cores = (other_programs_seconds() - used) / (time.monotonic() - began)
        save(path, found, measured_at(cores))
        print(json.dumps(found, indent=1), f"\nother programs used {cores:.2f} cores", flush=True)


def other_programs_seconds() -> float:
    """CPU seconds that the machine has given to programs other than this one and its children."""
    return process_tree.machine_cpu_seconds() - process_tree.cpu_seconds(os.getpid())


def save(path: Path, found: dict[str, Any], measured: dict[str, Any]) -> None:
    """Add figures to the file. Parts of one commit keep the highest number of cores that others used."""
    results = read(path)
    for kind, parts in found.items():
        results[kind] |= parts
    same_run = results["measured"].get("commit") == measured["commit"]
    busiest = max(measured["elsewhere_cores"], results["measured"]["elsewhere_cores"] if same_run else 0.0)
    results["measured"] = measured | {"elsewhere_cores": busiest}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"measured": {}, "rows": {}, "served": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--quick", action="store_true", help="a short try of a minute or two; written to build")
    parser.add_argument(
        "--compile", action="store_true", help="also torch.compile, which takes some minutes more for each network"
    )
    parser.add_argument(
        "--report", action="store_true", help="measure nothing, write the tables and the picture again"
    )
    parser.add_argument("--out", type=Path, help="folder of cpu.json (default: docs, with --quick build)")
    given = parser.parse_args()
    folder = given.out or ROOT / ("build" if given.quick else "docs")
    if not given.report:
        run(given.only, QUICK if given.quick else RunSettings(), given.compile, folder / "cpu.json")
    report.write(read(folder / "cpu.json"), folder)


if __name__ == "__main__":
    main()
