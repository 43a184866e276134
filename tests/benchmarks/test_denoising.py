"""The animation and the film strip of the denoising, drawn by the shipped models."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import denoising


def test_all_steps_of_both_models_are_drawn(tmp_path: Path) -> None:
    denoising.main(tmp_path / "a.webp", tmp_path / "s.png", digits="8", steps=2)
    with Image.open(tmp_path / "a.webp") as animation, Image.open(tmp_path / "s.png") as strip:
        assert animation.n_frames == 2  # pyright: ignore[reportAttributeAccessIssue]
        assert animation.height < strip.height  # which has a row for the latents, too
    found = denoising.draw("8", steps=2)
    (dit, dit_latents), (unet, unet_latents) = found["dit"], found["unet"]
    assert (dit[-1] == dit_latents[-1]).all()  # the last state is the picture
    assert np.abs(dit_latents[0].astype(int) - unet_latents[0]).mean() < 10  # from the same noise
    assert (dit[-1] != unet[-1]).any()
