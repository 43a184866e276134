"""Draws docs/between.png for docs/api.md: interpolation between classes and between seeds, and negative classes.

    python -m benchmarks.between

Each shipped model has a row. It goes from a 3 to an 8 with one noise, and with a 5 from the noise of one seed to
that of another. Then come fours with the null class as the negative class, and the same fours with the class 9.
"""

from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw

import stepwise
from benchmarks import ROOT

PICTURE = ROOT / "docs" / "between.png"
IMAGES, FOURS = 6, 3  # images of an interpolation; images of a 4 with each negative class
STEPS = 6  # of the sampler
MODELS = ("dit", "unet")
SCALE, HEAD, LEFT, GAP = 2, 26, 44, 4  # enlargement; pixels of the headings, the models' names and between groups


def draw_row(name: str, steps: int) -> list[tuple[str, list[Image.Image]]]:
    """The groups of images of a model's row, each with its heading."""
    model = stepwise.load(name, dtype="float32")
    draw = partial(model.sample, steps=steps, spacing="trailing", guidance_low=0.0, guidance_high=1.0)
    return [
        ("from 3 to 8", draw("3", class_to="8", seed=4, n=IMAGES)),
        ("a 5 from seed 1 to seed 2", draw("5", seed=1, seed_to=2, n=IMAGES)),
        ("three fours", draw("4", seed=3, n=FOURS)),
        ("the same, away from 9", draw("4", seed=3, n=FOURS, negative_class="9")),
    ]


def main(path: Path = PICTURE, steps: int = STEPS) -> None:
    rows = [draw_row(name, steps) for name in MODELS]
    size = SCALE * rows[0][0][1][0].width
    width = sum(size * len(images) + 2 * GAP for _, images in rows[0])
    sheet = Image.new("RGB", (LEFT + width, HEAD + (size + GAP) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        left, middle = LEFT, HEAD + line * (size + GAP) + size // 2
        draw.text((LEFT // 2, middle), MODELS[line], fill="black", anchor="mm", font_size=13)
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
