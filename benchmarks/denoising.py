"""Draws docs/denoising.webp and denoising.png for docs/api.md: how the shipped models denoise the same noise.

    python -m benchmarks.denoising

The animation shows all digits as each model predicts them at each step. The strip of images shows one digit of each
model, and its latents.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import stepwise
from benchmarks import ROOT

ANIMATION, STRIP = ROOT / "docs" / "denoising.webp", ROOT / "docs" / "denoising.png"
MODELS, DIGIT, SEED, STEPS = ("dit", "unet"), "8", 3, 16
MARGIN, HEAD, GAP = 76, 24, 2  # pixels
FRAME_MS, LAST_MS = 200, 2000

Row = tuple[str, list[np.ndarray]]  # a name, and pictures [H, W, C] uint8


def draw(digit: str, steps: int = STEPS) -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
    """By model, the predicted images of all steps and the latents after them; ddim adds no noise."""
    found = {}
    for name in MODELS:
        model = stepwise.load(name, dtype="float32")
        trajectory = model.trajectory(digit, seed=SEED, steps=steps, sampler="ddim", spacing="trailing")
        found[name] = tuple(pictures(states[0]) for states in (trajectory.denoised, trajectory.x[:, 1:]))
    return found


def pictures(states: np.ndarray) -> list[np.ndarray]:
    """States [steps, C, H, W] in -1..1 as images uint8 [H, W, C]."""
    return list(((states.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8).transpose(0, 2, 3, 1))


def draw_sheet(rows: list[Row], titles: list[str], scale: int) -> Image.Image:
    """One picture of all rows, with the titles above the first columns; scale: how much images are enlarged."""
    size = scale * rows[0][1][0].shape[1]
    cell = size + GAP
    sheet = Image.new("RGB", (MARGIN + cell * len(rows[0][1]), HEAD + cell * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((MARGIN + column * cell, HEAD // 2), title, fill="black", anchor="lm", font_size=12)
    for line, (name, states) in enumerate(rows):
        pen.text((4, HEAD + line * cell + size // 2), name, fill="black", anchor="lm", font_size=12)
        for column, state in enumerate(states):
            image = Image.fromarray(state).resize((size, size), Image.Resampling.NEAREST)
            sheet.paste(image, (MARGIN + column * cell, HEAD + line * cell))
    return sheet


def main(animation: Path = ANIMATION, strip: Path = STRIP, digits: str = "0123456789", steps: int = STEPS) -> None:
    found = {digit: draw(digit, steps) for digit in digits}
    frames = []
    for step in range(steps):
        rows = [(name, [found[digit][name][0][step] for digit in digits]) for name in MODELS]
        frames.append(draw_sheet(rows, [f"step {step + 1} of {steps}"], scale=2))
    how = {"duration": [FRAME_MS] * (steps - 1) + [LAST_MS], "loop": 0, "lossless": True, "method": 6}
    frames[0].save(animation, save_all=True, append_images=frames[1:], **how)
    shown, rows = range(0, steps, 2), []
    for name, (images, latents) in found[DIGIT].items():
        rows += [(name, [images[step] for step in shown]), ("its latent", [latents[step] for step in shown])]
    draw_sheet(rows, [f"step {step + 1}" for step in shown], scale=3).save(strip)


if __name__ == "__main__":
    main()
