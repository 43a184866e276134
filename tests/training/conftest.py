"""Networks small enough to train in a test, and the digits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoint import ModelConfig, build_model, save_checkpoint
from tests.training.runs import Config
from training.config import TrainConfig
from training.data import Data, load_data

TINY: dict[str, dict[str, Any]] = {
    "dit": {"hidden_dim": 32, "depth": 1, "num_heads": 2},
    "unet": {"base_channels": 8, "channel_multipliers": [1, 2], "num_res_blocks": 1},
}


@pytest.fixture
def tiny_config(tmp_path: Path) -> Config:
    """A run of six steps in float32 with a state behind every third."""

    def build(model: str = "dit", **changes: Any) -> TrainConfig:
        recipe = {"out": tmp_path / "run", "steps": 6, "batch_size": 8, "warmup": 2, "checkpoint_every": 3}
        recipe |= {"measure_every": 0}
        return TrainConfig(**({"model": model, "arguments": TINY[model], "autocast": False} | recipe | changes))

    return build


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """dit and unet, tiny and random: fresh networks answer zero."""
    for name, arguments in TINY.items():
        config = ModelConfig(name, arguments, sampling={"steps": 2}, training={"images_seen": 600, "seconds": 3.0})
        model, generator = build_model(config), torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        save_checkpoint(tmp_path / "checkpoints" / name, model, config)
    return tmp_path / "checkpoints"


@pytest.fixture(scope="session")
def digits() -> Data:
    return load_data("digits")
