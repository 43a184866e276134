"""Draws docs/images-in.png for docs/api.md: what the shipped models make of an image in the request.

    python -m benchmarks.images_in

Each model has a row. It begins with an image of a 3. An 8 starts from that image at four strengths. Then the left
half of the 3 is kept and completed to four classes. The last image starts from the 3 without a class.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import stepwise
from benchmarks import ROOT

PICTURE = ROOT / "docs" / "images-in.png"
STRENGTHS, CLASSES = (0.3, 0.6, 0.8, 1.0), "3589"
MODELS = ("dit", "unet")
SCALE, HEAD, LEFT, GAP = 3, 42, 44, 4  # enlargement; pixels of the headings, the models' names and between images


def draw_row(name: str) -> list[tuple[str, Image.Image]]:
    """The images of a model's row, each with its heading."""
    model = stepwise.load(name, dtype="float32")
    (three,) = model.sample("3", seed=4)
    right_half = Image.fromarray(np.tile(np.arange(three.width) >= three.width // 2, (three.height, 1)))

    def draw(label: str | None, **more: Any) -> Image.Image:
        return model.sample(label, seed=7, steps=10, image=three, **more)[0]

    return [
        ("the image", three),
        *((f"to an 8,\nstrength {strength}", draw("8", strength=strength)) for strength in STRENGTHS),
        *((f"left half kept,\nrest of a {label}", draw(label, mask=right_half)) for label in CLASSES),
        ("no class,\nstrength 0.6", draw(None)),
    ]


def main(path: Path = PICTURE) -> None:
    rows = [draw_row(name) for name in MODELS]
    size = SCALE * rows[0][0][1].width + GAP
    sheet = Image.new("RGB", (LEFT + size * len(rows[0]) + GAP, HEAD + size * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for line, name in enumerate(MODELS):
        draw.text((LEFT // 2, HEAD + line * size + size // 2), name, fill="black", anchor="mm", font_size=13)
    for column, (text, _) in enumerate(rows[0]):
        place = (LEFT + column * size + size // 2, HEAD // 2)
        draw.text(place, text, fill="black", anchor="mm", align="center", font_size=13)
        for line, row in enumerate(rows):
            cell = row[column][1].convert("RGB")
            cell = cell.resize((SCALE * cell.width, SCALE * cell.height), Image.Resampling.NEAREST)
            sheet.paste(cell, (LEFT + column * size, HEAD + line * size))
    sheet.save(path)


if __name__ == "__main__":
    main()
