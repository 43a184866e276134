"""Compares predictions (x0, velocity, v) by short training runs that differ in nothing else, graded by one judge.

    python -m benchmarks.predictions --steps 400 --threads 1      # about 25 minutes on one core

Run folders are kept under --out, and the same command continues them. docs/experiments.md lists the results.
"""

import argparse
from pathlib import Path
from typing import Any

from models.checkpoint import load_checkpoint
from models.sampling import Guidance
from training.config import PRESETS, TrainConfig
from training.data import load_data
from training.judge import load_judge
from training.measure import measure_samples
from training.report import Sampling
from training.train import train

SAMPLING = Sampling("ddim", 20, Guidance(1.5))
VARIANTS: dict[str, dict[str, Any]] = {
    "x0, loss as velocity, flow": {"prediction": "x0", "schedule": "flow"},
    "velocity, flow": {"prediction": "flow", "schedule": "flow"},
    "v, cosine": {"prediction": "v", "schedule": "cosine"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["dit", "unet"])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--images", type=int, default=300, help="sampled and graded for each row")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/predictions"))
    parser.add_argument("--judge", type=Path, default=Path("runs/judge"))
    arguments = parser.parse_args()

    data = load_data("digits")
    judge, _ = load_judge(arguments.judge, data)
    print("| model | prediction | class accuracy | Frechet distance |\n|---|---|---|---|")
    for model in arguments.models:
        for name, variant in VARIANTS.items():
            folder = arguments.out / f"{model}-{variant['prediction']}-{variant['schedule']}"
            changes: dict[str, Any] = variant | {
                "steps": arguments.steps,
                "out": folder,
                "threads": arguments.threads,
            }
            train(TrainConfig(**(PRESETS[model] | {"model": model} | changes)))
            found = measure_samples(*load_checkpoint(folder), data, [judge], arguments.images, SAMPLING)
            (graded,) = found["judges"]
            figures = f"{100 * graded['accuracy']:.1f} % | {graded['frechet']['generated']:.1f}"
            print(f"| {model} | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
