"""Compares images of the shipped checkpoints by OpenVINO in bfloat16 and int8 with those by torch in float32.

    python -m benchmarks.int8 --images 1000

Every type draws the same classes from the same seeds, with the checkpoint's default sampling. The classifier of
`run.py evaluate` grades all images. If its folder does not hold it, it is trained first, which takes a minute.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint import load_checkpoint
from models.files import WEIGHTS
from models.graph import read_graph
from models.quantization import int8_model
from service.backend import CompiledNetwork
from training.checkpoints import find_checkpoint
from training.data import Split, load_data
from training.distances import sample_balanced
from training.judge import Judge, load_judge
from training.report import sampling_of

MODELS = ("dit", "unet")
HEAD = """\
| model | type | right class | same class | mean difference of 255 | 99th percentile |
|---|---|---|---|---|---|"""


class CopyingNetwork(CompiledNetwork):
    """Returns copies, because samplers keep outputs, and CompiledNetwork overwrites them at its next call."""

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return super().forward(x, *others).clone()


def network(folder: Path, kind: str) -> torch.nn.Module:
    """The network by torch in "float32", or by OpenVINO in "bfloat16" or "int8" (the rest of it in bfloat16)."""
    model, config = load_checkpoint(folder)
    if kind == "float32":
        return model
    graph = read_graph(folder, folder / WEIGHTS)
    if kind == "int8":
        int8_model(graph, folder, config.sha256)
    return CopyingNetwork(graph, "bf16", torch.get_num_threads())


def row(name: str, kind: str, drawn: Split, exact: Split, judge: Judge) -> str:
    """A line of the table.

    It has the share of images that the judge grades as their label and as the exact images, and pixel differences.
    """
    grades, wanted = judge.grade(drawn.images)[1], judge.grade(exact.images)[1]
    right, same = ((grades == labels).double().mean().item() for labels in (drawn.labels, wanted))
    off = (drawn.images.int() - exact.images.int()).abs().double()
    high = off.flatten().kthvalue(max(1, round(0.99 * off.numel()))).values.item()
    return f"| {name} | {kind} | {100 * right:.1f} % | {100 * same:.1f} % | {off.mean().item():.2f} | {high:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="of each model (default: %(default)s)")
    parser.add_argument("--judge", type=Path, default=Path("runs/judge"), help="folder (default: %(default)s)")
    arguments = parser.parse_args()
    judge, _ = load_judge(arguments.judge, load_data("digits"))
    print(HEAD)
    for name in MODELS:
        folder = find_checkpoint(name)
        config = load_checkpoint(folder)[1]
        exact = None
        for kind in ("float32", "bfloat16", "int8"):
            drawn = sample_balanced(network(folder, kind), config, arguments.images, sampling_of(config))
            exact = exact or drawn
            print(row(name, kind, drawn, exact, judge), flush=True)


if __name__ == "__main__":
    main()
