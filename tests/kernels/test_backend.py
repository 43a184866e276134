"""Which implementation runs, tile sizes and layouts."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.backend import TRITON_DEVICES, image_layout, use_triton, width_tiles


def test_a_cpu_takes_the_reference() -> None:
    assert {"cuda"} == TRITON_DEVICES
    assert not use_triton(torch.zeros(1))


def test_a_needed_gradient_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.backend.TRITON_DEVICES", {"cpu"})
    x, weight = torch.zeros(1), torch.zeros(1, requires_grad=True)
    assert use_triton(x, None)
    assert not use_triton(x, weight)
    with torch.no_grad():
        assert use_triton(x, weight)
    with torch.inference_mode():
        assert use_triton(x, weight)


@pytest.mark.parametrize(
    ("width", "tiles"),
    [
        (96, (64, 32)),
        (768, (512, 256)),
        (48, (32, 16)),
        (64, (64, 0)),
        (100, (128, 0)),
        (384, (256, 128)),
        (1, (1, 0)),
    ],
)
def test_tiles_cover_a_width(width: int, tiles: tuple[int, int]) -> None:
    assert width_tiles(width) == tiles


@pytest.mark.parametrize("smallest", [1, 16])
def test_tiles_are_powers_of_two_that_hold_the_width(smallest: int) -> None:
    for width in range(1, 200):
        main, tail = width_tiles(width, smallest)
        assert width <= main + tail < 2 * max(width, smallest)
        assert all(tile.bit_count() == 1 and tile >= smallest for tile in (main, tail) if tile)


def test_layouts() -> None:
    images = torch.zeros(2, 3, 4, 5)
    assert image_layout(images) == torch.contiguous_format
    assert image_layout(images.contiguous(memory_format=torch.channels_last)) == torch.channels_last
    one_channel = torch.empty(2, 1, 4, 5, memory_format=torch.channels_last)
    assert image_layout(one_channel) == torch.channels_last
    assert image_layout(torch.zeros(2, 1, 4, 5)) == torch.contiguous_format
    with pytest.raises(ValueError, match="must be contiguous or channels_last"):
        image_layout(images[:, :2])


WITHOUT_TRITON = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import torch, kernels, models, service.engine.runner
x, t, y = torch.zeros(1, 3, 16, 16), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
dit = models.DIT(16, hidden_dim=32, num_heads=4)
unet = models.UNet(16, base_channels=8, channel_multipliers=(1, 2))
assert dit(x, t, y).shape == unet(x, t, y).shape == x.shape
assert "triton" not in sys.modules
print("runs")
"""


def test_everything_but_the_kernels_runs_where_there_is_no_triton() -> None:
    """Outside Linux there is none. torch itself looks for it lazily, so it is blocked rather than removed."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], cwd=root, capture_output=True, text=True)
    assert done.stdout == "runs\n", done.stderr
