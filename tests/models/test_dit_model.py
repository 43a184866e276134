"""The transformer: its sizes, what its output hangs on, and the constructions it refuses."""

import pytest
import torch
from torch import nn

from models import DIT
from models.checkpoint import parameter_count
from models.dit_model import grid_positions
from tests.models.networks import awake, inputs, silent_parameters

SMALL = {"image_size": 8, "image_channels": 2, "patch_size": 2, "hidden_dim": 32, "num_heads": 4, "num_classes": 3}


def small(**changes: int) -> DIT:
    torch.manual_seed(0)
    return DIT(**(SMALL | changes))


def awake_small(**changes: int) -> nn.Module:
    return awake(small(**changes))


def test_seed_constructor_and_its_size() -> None:
    with torch.device("meta"):
        model = DIT(
            image_size=32,
            image_channels=3,
            patch_size=4,
            hidden_dim=768,
            depth=2,
            num_heads=8,
            num_classes=10,
        )
        assert parameter_count(DIT()) == parameter_count(model) == 21_537_072
        assert parameter_count(DIT(32, 3, 4, 384, 2, 8, 10)) == 5_460_144  # the served size; arguments by position


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"image_size": 64, "patch_size": 8, "num_classes": 100}, id="64x64-100-classes"),
        pytest.param({"image_channels": 1}, id="one-channel"),
        pytest.param({"image_size": 9, "patch_size": 3, "hidden_dim": 21, "num_heads": 3}, id="odd"),
        pytest.param({"patch_size": 8, "depth": 1, "num_classes": 1, "num_heads": 1}, id="one-token"),
        pytest.param({"patch_size": 1, "depth": 3, "num_kv_heads": 4}, id="a-pixel-a-patch"),
    ],
)
def test_output_has_the_shape_of_the_image(sizes: dict[str, int]) -> None:
    model = awake_small(**sizes)
    arguments = SMALL | sizes
    x, t, y = inputs(3, arguments["image_channels"], arguments["image_size"], arguments["num_classes"])
    out = model(x, t, y)
    assert out.shape == x.shape
    assert out.isfinite().all()


def test_whole_and_fractional_timesteps() -> None:
    model = awake_small()
    x, _, y = inputs(2, 2, 8, 3)
    whole = model(x, torch.tensor([3, 500]), y)
    torch.testing.assert_close(whole, model(x, torch.tensor([3.0, 500.0]), y), rtol=0, atol=0)
    assert not torch.equal(whole, model(x, torch.tensor([3.5, 500.0]), y))


def test_output_depends_on_image_time_and_class() -> None:
    model = awake_small()
    x, t, y = inputs(2, 2, 8, 3)
    out = model(x, t, y)
    for other in (model(x + 0.1, t, y), model(x, t + 5, y), model(x, t, (y + 1) % 4)):
        assert ((other - out).flatten(1).abs().max(dim=1).values > 1e-3).all()


def test_null_class_is_a_class_of_its_own() -> None:
    model = awake_small()
    x, t, _ = inputs(4, 2, 8, 3)
    out = model(x[:1].expand(4, -1, -1, -1), t[:1].expand(4), torch.arange(4))
    assert min((out[3] - out[i]).abs().max() for i in range(3)) > 1e-3
    with pytest.raises(IndexError):
        model(x[:1], t[:1], torch.tensor([4]))


def test_rows_do_not_know_their_neighbours() -> None:
    model = awake_small()
    x, t, y = inputs(4, 2, 8, 3)
    together = model(x, t, y)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)  # matrix products of other sizes may round so
    changed = model(torch.cat([x[:1], 9 * x[1:]]), t, y)
    assert torch.equal(changed[0], together[0])


def test_forward_is_the_block_of_the_paper() -> None:
    """Peebles & Xie, figure 3: norm, modulate, branch, gate, add; here without the fused seams, block by block."""
    model = small(depth=3)
    awake(model)
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


def test_every_parameter_learns() -> None:
    assert silent_parameters(awake_small(), *inputs(8, 2, 8, 3)) == []


def test_kv_heads_are_fewer_than_query_heads_by_default() -> None:
    blocks = DIT(hidden_dim=32, num_heads=8).blocks
    assert [(b.num_heads, b.num_kv_heads, b.qkv.out_features) for b in blocks] == [(8, 2, (8 + 2 * 2) * 4)] * 2  # pyright: ignore
    assert parameter_count(small(num_kv_heads=4)) > parameter_count(small(num_kv_heads=1))


def test_positions_matter() -> None:
    """Without them a transformer would carry a permutation of the patches through."""
    model = awake_small()
    x, t, y = inputs(1, 2, 8, 3)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    permuted = model.unpatchify(model.patchify(x)[:, order])  # pyright: ignore[reportCallIssue]
    difference = lambda: model.patchify(model(permuted, t, y)) - model.patchify(model(x, t, y))[:, order]  # pyright: ignore[reportCallIssue]
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


def test_bfloat16_weights_compute_in_bfloat16() -> None:
    model = awake_small()
    x, t, y = inputs(2, 2, 8, 3)
    expected = model(x, t, y)
    out = model.bfloat16()(x, t, y)
    assert out.dtype == torch.bfloat16
    assert (out - expected).norm() < 0.05 * expected.norm()  # eight bits of mantissa through two blocks


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
