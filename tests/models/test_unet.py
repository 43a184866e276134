"""The UNet: its sizes, its skips, the order of its FiLM parameters, and the constructions it refuses."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from benchmarks.inspection.recorder import recorded_launches
from kernels import DeferredSum
from models import UNet
from models.checkpoint import parameter_count
from models.unet import GroupNorm, ResBlock
from tests.models.networks import inputs, randomized

SMALL = {"image_size": 8, "image_channels": 2, "base_channels": 8, "channel_multipliers": (1, 2), "num_classes": 3}


def small(**changes: object) -> UNet:
    torch.manual_seed(0)
    return UNet(**(SMALL | changes))  # pyright: ignore[reportArgumentType]


def test_seed_constructor_and_its_size() -> None:
    with torch.device("meta"):
        model = UNet(
            image_size=32,
            image_channels=3,
            base_channels=64,
            channel_multipliers=(1, 2, 4, 8),
            num_res_blocks=2,
            num_classes=10,
        )
        assert parameter_count(UNet()) == parameter_count(model) == 44_361_539
        assert parameter_count(UNet(32, 3, 32, (1, 2, 4, 8), 2, 10)) == 11_119_523  # the served size


def test_starts_by_predicting_its_last_bias() -> None:
    """A zero last convolution: an untrained network says nothing about the image."""
    model = small()
    out = model(*inputs(2, 2, 8, 3))
    torch.testing.assert_close(out, model.conv_out.bias[None, :, None, None].expand_as(out))  # pyright: ignore[reportOptionalSubscript]


@pytest.mark.parametrize(
    ("channels", "per_group"), [(16, 16), (64, 16), (48, 16), (8, 8), (24, 12), (36, 12), (7, 7), (17, 1), (1, 1)]
)
def test_groups_hold_16_channels_or_the_largest_divisor_below(channels: int, per_group: int) -> None:
    assert channels // GroupNorm(channels).num_groups == per_group


def test_served_network_has_16_channels_in_every_group() -> None:
    with torch.device("meta"):
        norms = [m for m in UNet(base_channels=32).modules() if isinstance(m, GroupNorm)]
    assert {len(norm.weight) // norm.num_groups for norm in norms} == {16}


@pytest.mark.parametrize("level", [0, 1])
def test_skips_are_used(level: int) -> None:
    """The first block of a way up reads its lower resolution, then the skip: without it the output changes."""
    model = randomized(small())
    x, t, y = inputs(2, 2, 8, 3)
    out = model(x, t, y)
    block = model.up[1 - level][0]  # pyright: ignore[reportIndexIssue]
    skip_channels = model.down[level][-1].out_channels  # pyright: ignore[reportIndexIssue, reportCallIssue]

    def forget_skip(module: nn.Module, arguments: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        h, scale, shift = arguments
        assert h[:, -skip_channels:].any()
        return torch.cat([h[:, :-skip_channels], 0 * h[:, -skip_channels:]], dim=1), scale, shift

    with block.register_forward_pre_hook(forget_skip):  # pyright: ignore[reportCallIssue]
        assert (model(x, t, y) - out).abs().max() > 1e-2
    assert torch.equal(model(x, t, y), out)


def film_of(model: UNet) -> list[tuple[ResBlock, Tensor, Tensor]]:
    """The blocks in the order in which forward meets them, and the scale and shift that each was given."""
    met: list[tuple[ResBlock, Tensor, Tensor]] = []
    blocks = [m for m in model.modules() if isinstance(m, ResBlock)]

    def note(block: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(block, ResBlock)
        met.append((block, *arguments[1:]))  # pyright: ignore[reportArgumentType]

    handles = [block.register_forward_pre_hook(note) for block in blocks]
    model(*inputs(2, model.image_channels, model.image_size, model.num_classes))
    for handle in handles:
        handle.remove()
    return met


@pytest.mark.parametrize("mid", [0, 1, 2])
def test_film_comes_in_the_order_of_the_blocks(mid: int) -> None:
    """Each block takes its own stretch of the one product: first its scale, then its shift."""
    model = randomized(small(channel_multipliers=(1, 2, 3), num_mid_blocks=mid))
    _, t, y = inputs(2, 2, 8, 3)
    film = model.film(model.condition(t, y))
    met = film_of(model)
    assert [block.out_channels for block, _, _ in met] == model.film_widths
    assert len(met) == 2 * 3 * 2 + mid
    assert torch.equal(torch.cat([f for _, scale, shift in met for f in (scale, shift)], dim=1), film)
    assert model.film.out_features == 2 * sum(model.film_widths)


def test_exchanging_the_film_of_two_blocks_changes_the_output() -> None:
    model = randomized(small())
    x, t, y = inputs(2, 2, 8, 3)
    out = model(x, t, y)
    width = model.film_widths[0]
    assert model.film_widths[1] == width
    for parameter in (model.film.weight, model.film.bias):
        first, second = parameter[: 2 * width].clone(), parameter[2 * width : 4 * width].clone()
        parameter[: 2 * width], parameter[2 * width : 4 * width] = second, first
    assert (model(x, t, y) - out).abs().max() > 1e-2


def test_film_scales_and_shifts_the_second_norm() -> None:
    """(1 + scale) * norm(h) + shift: at scale -1 nothing of the image but the skip passes the block."""
    torch.manual_seed(0)
    block = randomized(ResBlock(4, 4))
    x = torch.randn(2, 4, 6, 6)
    gone, shift = torch.full((2, 4), -1.0), torch.randn(2, 4)
    expected = x + block.conv2(nn.functional.silu(shift)[:, :, None, None].expand(-1, -1, 6, 6))
    torch.testing.assert_close(block(DeferredSum(x), gone, shift).compute(), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 10, "channel_multipliers": (1, 2, 2)}, "image_size 10 cannot be halved 2 times"),
        ({"channel_multipliers": (1, 1.5)}, "channel_multipliers must be positive whole numbers"),
        ({"image_size": 8.0}, "image_size must be a whole number from 1, got 8.0"),
        ({"base_channels": 0}, "base_channels must be a whole number from 1, got 0"),
        ({"channel_multipliers": ()}, "channel_multipliers must be positive whole numbers, one a resolution"),
        ({"channel_multipliers": (1, 0)}, "channel_multipliers must be positive whole numbers, one a resolution"),
        ({"num_res_blocks": 0}, "num_res_blocks must be a whole number from 1, got 0"),
        ({"num_mid_blocks": -1}, "num_mid_blocks must be a whole number from 0, got -1"),
        ({"condition_dim": 0}, "condition_dim must be a whole number from 1, got 0"),
        ({"image_size": 0}, "image_size must be a whole number from 1, got 0"),
        ({"image_channels": 0}, "image_channels must be a whole number from 1, got 0"),
        ({"num_classes": 0}, "num_classes must be a whole number from 1, got 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)  # fmt: skip
def test_impossible_sizes_say_what_to_change(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_a_block_is_two_norm_launches() -> None:
    """On a GPU: no bias, sum, concatenation or upsampling is a launch of its own."""
    with torch.device("meta"):
        model = UNet().eval().requires_grad_(False)
        x, t, y = torch.empty(2, 3, 32, 32), torch.empty(2), torch.empty(2, dtype=torch.int64)
    with recorded_launches() as launches:
        model(x, t, y)
    blocks = sum(isinstance(module, ResBlock) for module in model.modules())
    counts = Counter(launch.name for launch in launches)
    assert counts == {
        "group_norm_kernel": 2 * blocks + 1,  # and the last norm
        "deferred_sum_kernel": 4 + 4 + 3,  # skips, concatenations, upsamplings
        "convolution_kernel": 51,
        "sinusoidal_embedding_kernel": 1,
        "label_silu_kernel": 1,
    }
