"""What lies between classes and seeds for the shipped models: the picture of docs/api.md.

    python -m benchmarks.between

A row for each model: from a 3 to an 8 with one noise, a 5 from the noise of one seed to that of another, and fours
that are led away from no class, then from the class 9.
"""

from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw

import stepwise
from benchmarks import ROOT

PICTURE = ROOT / "docs" / "between.png"
IMAGES, FOURS, STEPS = 6, 3, 6  # of a way; with and without a class to lead away from; of the sampler
SCALE, HEAD, GAP = 2, 26, 4


def draw_row(name: str, steps: int) -> list[tuple[str, list[Image.Image]]]:
    """Groups of images, each with what it shows."""
    model = stepwise.load(name, dtype="float32")
    draw = partial(model.sample, steps=steps, spacing="trailing", guidance_low=0.0, guidance_high=1.0)
    return [
        ("from 3 to 8", draw("3", class_to="8", seed=4, n=IMAGES)),
        ("a 5 from seed 1 to seed 2", draw("5", seed=1, seed_to=2, n=IMAGES)),
        ("4", draw("4", seed=3, n=FOURS)),
        ("4, away from 9", draw("4", seed=3, n=FOURS, negative_class="9")),
    ]


def main(path: Path = PICTURE, steps: int = STEPS) -> None:
    rows = [draw_row(name, steps) for name in ("dit", "unet")]
    size = SCALE * rows[0][0][1][0].width
    width = sum(size * len(images) + 2 * GAP for _, images in rows[0])
    sheet = Image.new("RGB", (width + 2 * GAP, HEAD + (size + GAP) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        left = 2 * GAP
        for text, images in row:
            if line == 0:
                middle = left + size * len(images) // 2
                draw.text((middle, HEAD // 2), text, fill="black", anchor="mm", font_size=13)
            for image in images:
                cell = image.convert("RGB").resize((size, size), Image.Resampling.NEAREST)
                sheet.paste(cell, (left, HEAD + line * (size + GAP)))
                left += size
            left += 2 * GAP
    sheet.save(path)


if __name__ == "__main__":
    main()
