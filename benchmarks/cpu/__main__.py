"""Every way to run the networks on a CPU, side by side: rows a second, and images a second through HTTP.

    python -m benchmarks.cpu [--quick] [--compile] [--only dit unet full-dit full-unet http]

dit and unet are the shipped networks, the full ones have the default sizes and random weights. http is the whole
service with eight clients. All of it takes ten minutes, and the machine must be quiet.

The figures are kept in docs/cpu.json, part by part, and docs/cpu.md is drawn from it; --report does only that.
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
from benchmarks.cpu.through_http import BACKENDS, beside
from benchmarks.cpu.ways import BASE, Forward, build, check, compare, inputs, possible_ways
from benchmarks.networks import SHIPPED, full_size_network, shipped_network
from benchmarks.versions import package_version, short_commit
from models.checkpoint import ModelConfig
from training.machine import processor

FULL_SIZE = {"full-dit": "dit", "full-unet": "unet"}
HTTP = "http"
PARTS = (*SHIPPED, *FULL_SIZE, HTTP)
PACKAGES = ("torch", "openvino", "onnxruntime")


class Plan(NamedTuple):
    """How long everything takes."""

    counts: tuple[int, ...] = (1, 2, 4, 8, 16)  # rows
    rounds: int = 3
    seconds: float = 0.4  # of a turn of a network
    served_seconds: float = 8.0  # of a turn of the service


QUICK = Plan(counts=(1, 8), rounds=1, seconds=0.1, served_seconds=1.0)


def network_of(name: str) -> tuple[nn.Module, ModelConfig]:
    """One of SHIPPED or FULL_SIZE, in float32."""
    return shipped_network(name) if name in SHIPPED else full_size_network(FULL_SIZE[name])


def ways_of(name: str, network: nn.Module, config: ModelConfig, compiled: bool) -> dict[str, Forward]:
    """Those that can run the network and give its images; it is told which cannot."""
    forwards, given = dict[str, Forward](), inputs(config, 2)
    for way in possible_ways(compiled):
        try:
            forward = build(way, network, config)
            check(forward, forwards.get(BASE, forward), given)
        except Exception as error:  # somebody else's compiler may raise anything
            print(f"{name}: {way} is left out: {type(error).__name__}: {error}", flush=True)
        else:
            forwards[way] = forward
    return forwards


def measure(part: str, plan: Plan, compiled: bool) -> dict[str, Any]:
    """What is kept of one of PARTS."""
    if part == HTTP:
        return {"served": {name: through_http(name, plan) for name in SHIPPED}}
    network, config = network_of(part)
    forwards = ways_of(part, network, config, compiled)
    return {"rows": {part: compare(forwards, config, plan.counts, plan.rounds, plan.seconds)}}


def through_http(name: str, plan: Plan) -> dict[str, dict[str, float]]:
    """By backend; those that this machine has."""
    have = [backend for backend, library in BACKENDS.items() if any(library in way for way in possible_ways())]
    turns = (plan.rounds, plan.served_seconds, plan.seconds)
    return {backend: asyncio.run(beside(name, backend, *turns)) for backend in have}


def measured_at(elsewhere_cores: float) -> dict[str, Any]:
    return {
        "commit": short_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": {name: number for name in PACKAGES if (number := package_version(name))},
        "elsewhere_cores": round(elsewhere_cores, 2),
    }


def run(parts: Iterable[str], plan: Plan, compiled: bool, path: Path) -> None:
    """Measure the parts and keep each as soon as it is there; parts of earlier runs stay."""
    for part in parts:
        used, began = elsewhere(), time.monotonic()
        print(f"{part} ...", flush=True)
        found = measure(part, plan, compiled)
        cores = (elsewhere() - used) / (time.monotonic() - began)
        keep(path, found, measured_at(cores))
        print(json.dumps(found, indent=1), f"\nother programs used {cores:.2f} cores", flush=True)


def elsewhere() -> float:
    """CPU seconds that the machine gave to programs that this one did not start."""
    return process_tree.machine_seconds() - process_tree.cpu_seconds(os.getpid())


def keep(path: Path, found: dict[str, Any], measured: dict[str, Any]) -> None:
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
    parser.add_argument("--quick", action="store_true", help="a try of a minute or two; kept in build")
    parser.add_argument("--compile", action="store_true", help="torch.compile, too: some minutes more a network")
    parser.add_argument("--report", action="store_true", help="measure nothing; draw the page anew")
    parser.add_argument("--out", type=Path, help="folder of cpu.json (default: docs, of --quick build)")
    given = parser.parse_args()
    folder = given.out or ROOT / ("build" if given.quick else "docs")
    if not given.report:
        run(given.only, QUICK if given.quick else Plan(), given.compile, folder / "cpu.json")
    report.write(read(folder / "cpu.json"), folder)


if __name__ == "__main__":
    main()
