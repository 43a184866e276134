"""Ranges of activations, measured on the training data of a checkpoint."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.checkpoint import ModelConfig, build_model, load_checkpoint, save_checkpoint
from models.files import CONFIG
from models.graph import trace
from models.quantization import RANGES, int8_model
from run import main
from tests.training.conftest import TINY
from tests.training.runs import Config
from training.data import DataError, Split
from training.quantize import batches, measure, quantize_checkpoint, training_images
from training.train import train

IMAGES = 24


@pytest.fixture
def trained(tiny_config: Config) -> Path:
    """A checkpoint whose config says what it has learnt from."""
    return train(tiny_config(steps=1, warmup=0))


def seen(
    network: nn.Module, module: nn.Module, inputs: list[tuple[Tensor, ...]]
) -> tuple[list[float], list[float]]:
    """The least and the largest value of each image that a module of torch's network reads."""
    read = list[Tensor]()
    hook = module.register_forward_pre_hook(lambda _, given: read.append(given[0].flatten(1)))
    for given in inputs:
        network(*given)
    hook.remove()
    values = torch.cat(read)
    return values.amin(1).tolist(), values.amax(1).tolist()


def test_the_command_writes_what_the_network_reads(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(trained), "--images", str(IMAGES)]) == 0
    assert capsys.readouterr().out.strip() == str(trained / RANGES)
    network, config = load_checkpoint(trained)
    content = json.loads((trained / RANGES).read_text())
    assert content["sha256"] == config.sha256
    assert list(content["ranges"]) == [f"blocks.0.{name}.weight" for name in ("qkv", "proj", "mlp.0", "mlp.2")]
    given = list(batches(training_images(config), config, IMAGES))
    for name in ("qkv", "proj"):
        (found,) = content["ranges"][f"blocks.0.{name}.weight"]
        lows, highs = seen(network, network.get_submodule(f"blocks.0.{name}"), given)
        assert found == pytest.approx([np.quantile(lows, 0.05), np.quantile(highs, 0.95)], rel=1e-3)
    int8_model(trace(network, config), trained, config.sha256)


def test_the_sides_of_a_concatenation_are_measured_apart(checkpoints: Path, digits: Any) -> None:
    network, config = load_checkpoint(checkpoints / "unet")
    ranges = measure(trace(network, config), batches(digits.train, config, IMAGES))
    came_down, skip = ranges["up.1.0.skip.weight"]
    assert [skip] == ranges["downsample.0.weight"]  # which reads the skip of its level, too
    assert came_down != skip
    assert {len(parts) for name, parts in ranges.items() if not name.endswith("skip.weight")} == {1}


def test_rows_have_every_noise_level_and_every_label() -> None:
    config = ModelConfig("dit", {"few_step": True}, class_names=["a", "b", "c"], guidance_range=(1.0, 3.0))
    split = Split(torch.full((5, 3, 8, 8), 255, dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1]))
    given = list(batches(split, config, 40))
    x, t, y, r, w = (torch.cat(column) for column in zip(*given, strict=True))
    assert len(x) == 40
    assert sorted(t.tolist()) == pytest.approx([25.0 * (k + 0.5) for k in range(40)])
    assert t[:16].max() > 700  # in every batch
    assert t[:16].min() < 300
    assert set(y.tolist()) == {0, 1, 2, 3}
    assert bool(((r >= 0) & (r <= t)).all())
    assert bool(((w >= 1) & (w <= 3)).all())
    clean = x[t < 100].mean(), x[t > 900].mean()
    assert clean[0] > 0.9 > 0.1 > clean[1].abs()  # white pictures, and then noise


def test_what_was_always_zero_has_a_range(digits: Any) -> None:
    config = ModelConfig("dit", TINY["dit"])
    network = build_model(config).eval().requires_grad_(False)
    nn.init.zeros_(network.get_parameter("blocks.0.qkv.weight"))
    ranges = measure(trace(network, config), batches(digits.train, config, 2))
    assert ranges["blocks.0.proj.weight"] == [(0.0, 1.0)]


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({}, "does not say what it was trained on"),
        ({"data": "cifar10"}, "needs a path: --data-path"),
        ({"data": "stars"}, "unknown data 'stars'"),
    ],
)
def test_data_that_is_not_known_is_refused(checkpoints: Path, recipe: dict[str, Any], said: str) -> None:
    folder = checkpoints / "dit"
    network, config = load_checkpoint(folder)
    save_checkpoint(folder, network, replace(config, training={"recipe": recipe}))
    with pytest.raises(DataError, match=said):
        quantize_checkpoint(folder)
    assert not (folder / RANGES).exists()


def test_no_images_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(trained), "--images", "0"]) == 2
    assert "images must be at least 1, got 0" in capsys.readouterr().err


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(tmp_path)]) == 2
    assert CONFIG in capsys.readouterr().err
