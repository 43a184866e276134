"""What the shipped models make of an image: the picture of docs/api.md.

    python -m benchmarks.images_in

A row a model: a 3, an 8 that starts from it at four strengths, its left half completed to four classes, and what
starts from it without a class.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import stepwise
from benchmarks import ROOT

PICTURE = ROOT / "docs" / "images-in.png"
STRENGTHS, CLASSES = (0.3, 0.6, 0.8, 1.0), "3589"
SCALE, HEAD, GAP = 3, 26, 4


def draw_row(name: str) -> list[tuple[str, Image.Image]]:
    model = stepwise.load(name, dtype="float32")
    (three,) = model.sample("3", seed=4)
    right_half = Image.fromarray(np.tile(np.arange(three.width) >= three.width // 2, (three.height, 1)))

    def draw(label: str | None, **more: Any) -> Image.Image:
        return model.sample(label, seed=7, steps=10, image=three, **more)[0]

    return [
        ("image", three),
        *((f"8, {strength}", draw("8", strength=strength)) for strength in STRENGTHS),
        *((f"half to {label}", draw(label, mask=right_half)) for label in CLASSES),
        ("no class, 0.6", draw(None)),
    ]


def main(path: Path = PICTURE) -> None:
    rows = [draw_row(name) for name in ("dit", "unet")]
    size = SCALE * rows[0][0][1].width + GAP
    sheet = Image.new("RGB", (size * len(rows[0]) + GAP, HEAD + size * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (text, _) in enumerate(rows[0]):
        draw.text((GAP + column * size + size // 2, HEAD // 2), text, fill="black", anchor="mm", font_size=13)
        for line, row in enumerate(rows):
            cell = row[column][1].convert("RGB")
            cell = cell.resize((SCALE * cell.width, SCALE * cell.height), Image.Resampling.NEAREST)
            sheet.paste(cell, (GAP + column * size, HEAD + line * size))
    sheet.save(path)


if __name__ == "__main__":
    main()
