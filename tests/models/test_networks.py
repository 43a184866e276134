"""What holds for both networks: shapes, inputs that count, independent rows, gradients, bfloat16."""

from typing import Any

import pytest
import torch
from torch import nn

from models import DIT, UNet
from tests.models.networks import inputs, randomized, silent_parameters

SIZES = {"image_size": 8, "image_channels": 2, "num_classes": 3}
SMALL: dict[type[nn.Module], dict[str, Any]] = {
    DIT: SIZES | {"patch_size": 2, "hidden_dim": 32, "num_heads": 4},
    UNet: SIZES | {"base_channels": 8, "channel_multipliers": (1, 2)},
}
# Convolutions of another batch size may round otherwise; relative to outputs of order one.
ALONE = {DIT: 1e-5, UNet: 1e-4}

each_network = pytest.mark.parametrize("network", SMALL)


def small(network: type[nn.Module], **changes: object) -> nn.Module:
    torch.manual_seed(0)
    return randomized(network(**(SMALL[network] | changes)))


@pytest.mark.parametrize(
    ("network", "sizes"),
    [
        pytest.param(DIT, {"image_size": 64, "patch_size": 8, "num_classes": 100}, id="dit-64x64-100-classes"),
        pytest.param(DIT, {"image_channels": 1}, id="dit-one-channel"),
        pytest.param(DIT, {"image_size": 9, "patch_size": 3, "hidden_dim": 21, "num_heads": 3}, id="dit-odd"),
        pytest.param(DIT, {"patch_size": 8, "depth": 1, "num_classes": 1, "num_heads": 1}, id="dit-one-token"),
        pytest.param(DIT, {"patch_size": 1, "depth": 3, "num_kv_heads": 4}, id="dit-a-pixel-a-patch"),
        pytest.param(UNet, {"image_size": 64, "num_classes": 100}, id="unet-64x64-100-classes"),
        pytest.param(UNet, {"image_channels": 1}, id="unet-one-channel"),
        pytest.param(UNet, {"base_channels": 24, "channel_multipliers": (1, 3)}, id="unet-24-channels"),
        pytest.param(UNet, {"base_channels": 7, "channel_multipliers": (1, 3, 1)}, id="unet-odd"),
        pytest.param(
            UNet, {"image_size": 5, "channel_multipliers": (2,), "num_mid_blocks": 0}, id="unet-one-resolution"
        ),
        pytest.param(UNet, {"num_res_blocks": 3, "num_mid_blocks": 1, "condition_dim": 5}, id="unet-other-depths"),
    ],
)
def test_output_has_the_shape_of_the_image(network: type[nn.Module], sizes: dict[str, Any]) -> None:
    arguments = SMALL[network] | sizes
    x, t, y = inputs(3, arguments["image_channels"], arguments["image_size"], arguments["num_classes"])
    out = small(network, **sizes)(x, t, y)
    assert out.shape == x.shape
    assert out.isfinite().all()


@each_network
def test_whole_and_fractional_timesteps(network: type[nn.Module]) -> None:
    model = small(network)
    x, _, y = inputs(2, 2, 8, 3)
    whole = model(x, torch.tensor([3, 500]), y)
    torch.testing.assert_close(whole, model(x, torch.tensor([3.0, 500.0]), y), rtol=0, atol=0)
    assert not torch.equal(whole, model(x, torch.tensor([3.5, 500.0]), y))


@each_network
def test_output_depends_on_image_time_and_class(network: type[nn.Module]) -> None:
    model = small(network)
    x, t, y = inputs(2, 2, 8, 3)
    out = model(x, t, y)
    for other in (model(x + 0.1, t, y), model(x, t + 5, y), model(x, t, (y + 1) % 4)):
        assert ((other - out).flatten(1).abs().max(dim=1).values > 1e-3).all()


@each_network
def test_null_class_is_a_class_of_its_own(network: type[nn.Module]) -> None:
    model = small(network)
    x, t, _ = inputs(4, 2, 8, 3)
    out = model(x[:1].expand(4, -1, -1, -1), t[:1].expand(4), torch.arange(4))
    assert min((out[3] - out[i]).abs().max() for i in range(3)) > 1e-3
    with pytest.raises(IndexError):
        model(x[:1], t[:1], torch.tensor([4]))


@each_network
def test_rows_do_not_depend_on_their_neighbours(network: type[nn.Module]) -> None:
    model = small(network)
    x, t, y = inputs(4, 2, 8, 3)
    together = model(x, t, y)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=ALONE[network], atol=ALONE[network])
    changed = model(torch.cat([x[:1], 9 * x[1:]]), t, y)
    torch.testing.assert_close(changed[0], together[0], rtol=1e-5, atol=1e-5)


@each_network
def test_every_parameter_learns(network: type[nn.Module]) -> None:
    assert silent_parameters(small(network), *inputs(8, 2, 8, 3)) == []


@each_network
def test_bfloat16_weights_compute_in_bfloat16(network: type[nn.Module]) -> None:
    model = small(network)
    x, t, y = inputs(2, 2, 8, 3)
    expected = model(x, t, y)
    out = model.bfloat16()(x, t, y)
    assert out.dtype == torch.bfloat16
    assert (out - expected).norm() < 0.05 * expected.norm()  # eight bits of mantissa
