"""`run.py info`: parameters against the real networks, FLOPs against counts by hand."""

from typing import Any

import pytest

from models.checkpoint import ModelConfig, build_model, parameter_count
from training.info import describe, model_info


@pytest.mark.parametrize(("model", "parameters"), [("dit", 21_537_072), ("unet", 44_361_539)])
def test_info_sums_up_its_parts(model: str, parameters: int) -> None:
    info = model_info(model, {})
    assert info["parameters"] == parameters
    assert sum(count for count, _ in info["parts"].values()) == parameters
    assert sum(flops for _, flops in info["parts"].values()) == info["flops"]


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("dit", {"hidden_dim": 64, "num_heads": 4, "patch_size": 2, "num_classes": 3}),
        ("unet", {"base_channels": 16, "channel_multipliers": [1, 2], "image_channels": 1, "image_size": 64}),
    ],
    ids=["dit", "unet"],
)
def test_info_agrees_with_the_real_network(model: str, arguments: dict[str, Any]) -> None:
    names = [str(i) for i in range(arguments.get("num_classes", 10))]
    config = ModelConfig(model, arguments, class_names=names)
    network, info = build_model(config), model_info(model, arguments)
    assert info["parameters"] == parameter_count(network)


def test_info_names_the_parts() -> None:
    text = describe("dit", {"hidden_dim": 384})
    parts = [line.split("  ")[0] for line in text.splitlines()[1:]]
    assert {"attention projections", "attention products", "mlp", "modulation", "condition", "total"} <= set(parts)
    dim = 384
    mlp = 2 * (2 * 4 * dim * dim + 5 * dim)  # two blocks of two matrices with their biases
    assert f"{mlp:,}" in next(line for line in text.splitlines() if line.startswith("mlp "))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_dim": 7}, "hidden_dim 7"),
        ({"width": 7}, "width"),
        ({"num_classes": "ten"}, "num_classes must be at least 1, got 'ten'"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_info_refuses_impossible_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_info("dit", arguments)


def test_flops_of_a_small_dit_by_hand() -> None:
    """Multiply-adds count two. N = 4 tokens of 3 * 4 * 4 = 48 numbers, D = 16, two heads of 8, one kv head."""
    N, D, patch, qkv, mlp = 4, 16, 48, (2 + 2 * 1) * 8, 64
    tokens = N * (patch * D + D * qkv + D * D + 2 * D * mlp + D * patch)
    attention = 2 * 2 * N * N * 8  # scores and weighted sum, two heads
    condition = 256 * D + D * D + D * (6 + 2) * D  # time embedding, modulation
    arguments = {"image_size": 8, "patch_size": 4, "hidden_dim": 16, "depth": 1, "num_heads": 2}
    assert model_info("dit", arguments)["flops"] == 2 * (tokens + attention + condition)


def test_flops_of_a_small_unet_by_hand() -> None:
    """One resolution of 4 x 4 pixels and 2 channels: 3x3 convolutions, and the 1x1 of the block on the way up."""
    arguments = {"image_size": 4, "image_channels": 1, "base_channels": 2, "channel_multipliers": [1]}
    arguments |= {"num_res_blocks": 1, "num_classes": 1, "num_mid_blocks": 0, "condition_dim": 3}
    in_down_up_out = 1 * 2 + 2 * (2 * 2) + (4 * 2 + 2 * 2) + 2 * 1
    condition = 256 * 3 + 3 * 3 + 3 * 2 * (2 + 2)  # time embedding, FiLM of two blocks
    assert model_info("unet", arguments)["flops"] == 2 * (16 * 9 * in_down_up_out + 16 * 4 * 2 + condition)
