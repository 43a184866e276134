"""The picture of `run.py sample`: samples of several models side by side.

Letters: R rows (classes), K columns, C x H x W the image.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from models.checkpoint import load_checkpoint, parameter_count
from models.sampling import to_uint8
from training.report import Sampling, generate, label_width, sampling_of, tiled

NAMES = {"dit": "DiT", "unet": "UNet"}
INK, FAINT, PAPER = "#1f2328", "#656d76", "#ffffff"
TILE = 56  # pixels of an image on the sheet
GAP = 4  # between images
MARGIN = 28
HEADING = 64  # height above a panel
LABELS = 48  # width left of a panel, at least


def draw_samples(
    folders: dict[str, Path],
    out: Path,
    *,
    architecture: str | None = None,
    columns: int = 8,
    seed: int = 0,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> Path:
    """Sample every model under the same seeds and draw one panel a model, one row a class.

    folders: checkpoints by name. architecture: `package.module:Class` of networks that are not this project's.

    Raises:
        CheckpointError: a checkpoint that cannot be read.
        ValueError: fewer than one column, or sampling options that do not exist.
    """
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if not 0 <= seed < 2**62:
        raise ValueError(f"seed must lie in 0..2^62, got {seed}")
    panels = []
    for name, folder in folders.items():
        model, config = load_checkpoint(folder, architecture)
        how = sampling_of(config, sampler=sampler, steps=steps, guidance=guidance)
        labels = torch.arange(config.num_classes).repeat_interleave(columns)
        images = to_uint8(generate(model, config, labels, torch.arange(len(labels)) + seed, how))
        title = NAMES.get(name, name)
        panels.append(panel(images, title, subtitle(parameter_count(model), how), config.class_names, columns))
    sheet = Image.new("RGB", (sum(p.width for p in panels) + MARGIN, max(p.height for p in panels)), PAPER)
    left = 0
    for part in panels:
        sheet.paste(part, (left, 0))
        left += part.width
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, optimize=True)
    return out


def panel(images: Tensor, title: str, line: str, names: list[str], columns: int) -> Image.Image:
    """images: [R * K, C, H, W] uint8, row by row."""
    step = TILE + GAP
    size = 18 if max(map(len, names)) < 3 else 12
    left = MARGIN + label_width(names, size, LABELS - 14) + 14
    height = MARGIN + HEADING + len(names) * step + MARGIN
    width = max(
        left + columns * step, *(left + label_width([text], font, 0) for text, font in ((title, 26), (line, 14)))
    )
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((left, MARGIN), title, fill=INK, font_size=26, anchor="lt")
    draw.text((left, MARGIN + 36), line, fill=FAINT, font_size=14, anchor="lt")
    tiles = np.stack([np.asarray(tile(image)) for image in images]).reshape(-1, columns, TILE, TILE, 3)
    sheet.paste(Image.fromarray(tiled(tiles, GAP)), (left, MARGIN + HEADING))
    for row, name in enumerate(names):
        middle = MARGIN + HEADING + row * step + TILE // 2
        draw.text((left - 14, middle), name, fill=FAINT, font_size=size, anchor="rm")
    return sheet


def tile(image: Tensor) -> Image.Image:
    """[C, H, W] uint8, enlarged to TILE."""
    pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.BICUBIC)


def subtitle(parameters: int, how: Sampling) -> str:
    scale = how.guidance.scale
    return f"{parameters / 1e6:.1f} M parameters · {how.sampler}, {how.steps} steps, guidance {scale:g}"
