"""The transformer: its sizes, what its output depends on, and the constructions it refuses."""

import pytest
import torch
from torch import nn

from models import DIT
from models.checkpoint import parameter_count
from models.dit_model import grid_positions
from tests.models.networks import inputs, randomized

SMALL = {"image_size": 8, "image_channels": 2, "patch_size": 2, "hidden_dim": 32, "num_heads": 4, "num_classes": 3}


def small(**changes: int) -> DIT:
    torch.manual_seed(0)
    return DIT(**(SMALL | changes))


def test_seed_constructor_and_its_size() -> None:
    with torch.device("meta"):
        sizes = {"image_size": 32, "image_channels": 3, "patch_size": 4, "hidden_dim": 768, "depth": 2}
        model = DIT(**sizes, num_heads=8, num_classes=10)
        assert parameter_count(DIT()) == parameter_count(model) == 21_537_072
        assert parameter_count(DIT(32, 3, 4, 384, 2, 8, 10)) == 5_460_144  # the served size; arguments by position


def test_forward_is_the_block_of_the_paper() -> None:
    """Peebles & Xie, figure 3: norm, modulate, branch, gate, add; here without the fused seams, block by block."""
    model = randomized(small(depth=3))
    x, t, y = inputs(2, 2, 8, 3)
    condition = model.condition(t, y)
    rows = model.modulation(condition).unflatten(1, (-1, 1, model.hidden_dim)).unbind(1)  # 6 a block, then 2
    norm = lambda h: nn.functional.layer_norm(h, h.shape[-1:], eps=1e-6)
    h = model.patch_embed(model.patchify(x)) + model.positions
    for i, block in enumerate(model.blocks):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = rows[6 * i : 6 * i + 6]
        h = h + gate_a * block.attend(norm(h) * (1 + scale_a) + shift_a)  # pyright: ignore[reportCallIssue]
        h = h + gate_m * block.mlp(norm(h) * (1 + scale_m) + shift_m)  # pyright: ignore[reportCallIssue]
    shift, scale = rows[-2:]
    expected = model.unpatchify(model.reconstruct(norm(h) * (1 + scale) + shift))
    torch.testing.assert_close(model(x, t, y), expected, rtol=1e-5, atol=1e-5)


def test_starts_by_predicting_zero() -> None:
    """adaLN-zero and a zero last layer: an untrained network says nothing about the image."""
    assert not small()(*inputs(2, 2, 8, 3)).any()


def test_kv_heads_are_fewer_than_query_heads_by_default() -> None:
    blocks = DIT(hidden_dim=32, num_heads=8).blocks
    assert [(b.num_heads, b.num_kv_heads, b.qkv.out_features) for b in blocks] == [(8, 2, (8 + 2 * 2) * 4)] * 2  # pyright: ignore
    assert parameter_count(small(num_kv_heads=4)) > parameter_count(small(num_kv_heads=1))


def test_the_output_depends_on_positions() -> None:
    """Without them a transformer would carry a permutation of the patches through."""
    model = randomized(small())
    x, t, y = inputs(1, 2, 8, 3)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    permuted = model.unpatchify(model.patchify(x)[:, order])
    difference = lambda: model.patchify(model(permuted, t, y)) - model.patchify(model(x, t, y))[:, order]
    assert difference().abs().max() > 1e-2
    model.get_buffer("positions").zero_()
    assert difference().abs().max() < 1e-4


def test_positions_are_distinct_and_not_stored() -> None:
    positions = grid_positions(8, 33)
    assert positions.shape == (64, 33)
    distances = torch.cdist(positions, positions) + torch.eye(64)
    assert distances.min() > 0.1
    assert "positions" not in small().state_dict()


@pytest.mark.parametrize(("size", "patch", "channels"), [(8, 2, 2), (9, 3, 1), (12, 4, 5), (5, 1, 3)])
def test_unpatchify_undoes_patchify(size: int, patch: int, channels: int) -> None:
    model = DIT(size, channels, patch, hidden_dim=8, num_heads=2)
    x = torch.randn(2, channels, size, size)
    tokens = model.patchify(x)
    assert torch.equal(model.unpatchify(tokens), x)
    assert torch.equal(
        tokens[0, 1], x[0, :, :patch, patch : 2 * patch].flatten()
    )  # the second patch of the first row


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 10, "patch_size": 4}, "image_size 10 is no multiple of patch_size 4: change one of them"),
        ({"hidden_dim": 32.0}, "hidden_dim must be a whole number from 1, got 32.0"),
        ({"depth": True}, "depth must be a whole number from 1, got True"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio inf"),
        ({"mlp_ratio": 1e-9}, "mlp_ratio 1e-09 leaves the MLP no width"),
        ({"patch_size": 0}, "patch_size must be a whole number from 1, got 0"),
        ({"image_size": 0}, "image_size must be a whole number from 1, got 0"),
        ({"image_channels": 0}, "image_channels must be a whole number from 1, got 0"),
        ({"num_classes": 0}, "num_classes must be a whole number from 1, got 0"),
        ({"hidden_dim": 30}, "hidden_dim 30 does not divide into num_heads 4: make it a multiple of 4"),
        ({"depth": 0}, "depth must be a whole number from 1, got 0"),
        ({"num_heads": 0}, "num_heads must be a whole number from 1, got 0"),
        ({"num_kv_heads": 3}, "num_kv_heads 3 must divide num_heads 4"),
        ({"num_kv_heads": 8}, "num_kv_heads 8 must divide num_heads 4"),
        ({"num_kv_heads": 0}, "num_kv_heads must be a whole number from 1, got 0"),
        ({"mlp_ratio": 0}, "mlp_ratio 0 leaves the MLP no width"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_impossible_sizes_say_what_to_change(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)
