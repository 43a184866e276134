"""Sheets of D5: sensitivity fields, and the outputs of a network and of analytic denoisers for one noisy image."""

from pathlib import Path

import numpy as np

from training.comparison.drawing import source
from training.comparison.galleries import Rows, Sheet, as_picture, draw
from training.comparison.selection import PAIR, Line, Lines, of, seed_of

STAGES = ("noisy", "outputs", "local", "wiener", "optimal")  # rows of a block


def sheets(folder: Path, lines: Lines) -> list[Sheet]:
    """Nothing without arrays of both networks."""
    used = [x for x in of(lines, "D5") if "probe" in x and (folder / f"{x['run']}.npz").exists()]
    by_network = {name: sorted((x for x in used if x["network"] == name), key=seed_of) for name in PAIR}
    if not all(by_network.values()):
        return []
    return [sensitivity(folder, by_network), denoised(folder, by_network)]


def sensitivity(folder: Path, found: dict[str, Lines]) -> Sheet:
    """A column a noise level, mean over the runs."""
    blocks = []
    for name, lines in found.items():
        mean = np.mean(
            [load(folder, line, "sensitivity").astype(np.float64) for line in lines], axis=0
        )  # [L, H, W]
        shades = 255 * (mean / mean.max(axis=(1, 2), keepdims=True)) ** 0.5
        blocks.append((name, [[as_picture(field.round().astype(np.uint8)[None]) for field in shades]]))
    caption = (
        "Sensitivity of the denoised middle pixel to each input pixel: square root, the largest white, mean over "
        "the runs. From little noise (left) to much (right); above the DiT, below the UNet. "
    )
    alt = "Sensitivity fields of DiT and UNet by noise level."
    return Sheet(draw(blocks, stacked=True), alt, caption + source([x for lines in found.values() for x in lines]))


def denoised(folder: Path, found: dict[str, Lines]) -> Sheet:
    """Of one held-out image, by the first run of each network."""
    blocks = [(name, stages(folder, lines[0])) for name, lines in found.items()]
    caption = (
        "One held-out image under rising noise (a column a level). Rows: the noisy image, the network's answer, "
        "then the local, the Wiener and the optimal denoiser's. Left the DiT, right the UNet; the local patch is "
        "fitted to each. "
    )
    alt = "A noisy image, and what each network and three other denoisers make of it, by noise level."
    return Sheet(draw(blocks), alt, caption + source([lines[0] for lines in found.values()]))


def stages(folder: Path, line: Line) -> Rows:
    return [[as_picture(images[0]) for images in load(folder, line, stage)] for stage in STAGES]


def load(folder: Path, line: Line, name: str) -> np.ndarray:
    with np.load(folder / f"{line['run']}.npz", allow_pickle=False) as arrays:
        return arrays[name]
