"""The compile table lists what the networks really launch."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from benchmarks.inspection.recorder import Launch, recorded_launches
from benchmarks.inspection.served import served
from models.checkpoint import ModelConfig, build_model, load_config

SIZES = {"C", "D", "E", "H", "SCALE", "HALF", "EXPONENT"}  # constants that change no tile
SIZES_OF_A_CONVOLUTION = {"W", "SIDE", "STRIDE"}
CONFIGS = {name: ModelConfig(name, {}) for name in ("dit", "unet")}
CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


def shape_of(launch: Launch) -> tuple[object, ...]:
    """Kernel, warps and the constants that decide its code."""
    constants = {p.name: launch.arguments[p.name] for p in launch.kernel.params if p.is_constexpr}
    sizes = SIZES | (SIZES_OF_A_CONVOLUTION if launch.name == "convolution_kernel" else set())
    tiles = sorted((name, value) for name, value in constants.items() if name not in sizes)
    if launch.name == "convolution_kernel":  # it reads an image in another way where its steps do not fit
        tiles.append(("whole", constants["C"] % constants["STEP"] == 0))
    return launch.name, launch.options["num_warps"], tuple(tiles)


def given(launch: Launch) -> set[str]:
    return {name for name, value in launch.arguments.items() if value is not None}


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("name", ["dit", "unet", "default dit", "default unet"])
def test_every_launch_of_the_networks_is_in_the_table(name: str, batch: int) -> None:
    with torch.device("meta"):
        config = CONFIGS[name.removeprefix("default ")] if "default" in name else load_config(CHECKPOINTS / name)
        model = build_model(config).to(torch.bfloat16).eval().requires_grad_(False)
        x = torch.empty(batch, *config.image_shape, dtype=torch.bfloat16)
        t, y = torch.empty(batch), torch.empty(batch, dtype=torch.int64)
    with recorded_launches() as launches:
        model(x, t, y)
    assert len(launches) > 5
    listed = [case.launch for case in served(torch.bfloat16)]
    for launch in launches:  # a listed case may do more: another sum, another bias
        assert any(shape_of(case) == shape_of(launch) and given(launch) <= given(case) for case in listed), (
            shape_of(launch)
        )
