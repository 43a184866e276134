"""How many kernels a step launches, and the page that says what follows from it."""

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="needs Triton")

from benchmarks import roofline
from benchmarks.launches import LaunchCounter, count_step, counted
from models import DIT, UNet
from models.unet import ResBlock


def frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def test_a_dit_block_is_three_triton_launches_four_products_and_gelu() -> None:
    """Attention and two norm chains; and one product gives the modulation of every block."""
    networks = [frozen(DIT(image_size=8, hidden_dim=64, depth=depth)) for depth in (2, 5)]
    shallow, deep = (count_step(network, 2, fused=True).launches for network in networks)
    more = {kind: deep[kind] - shallow[kind] for kind in deep}
    assert more == {"Triton": 3 * 3, "product": 3 * 4, "other": 3 * 1}
    assert shallow["product"] == 2 * 4 + 5  # two of time, modulation, patches, reconstruction
    assert shallow["other"] == 2 * 1 + 3  # SiLU of time, patches out of the image and back


def test_a_residual_block_is_two_norm_launches_and_its_convolutions() -> None:
    sizes = {"image_size": 8, "base_channels": 16, "channel_multipliers": (1, 2)}
    small, large = (frozen(UNet(**sizes, num_res_blocks=n)) for n in (1, 3))
    blocks = [sum(isinstance(m, ResBlock) for m in model.modules()) for model in (small, large)]
    added = blocks[1] - blocks[0]
    assert added == 8
    counts = [count_step(model, 2, fused=True).launches for model in (small, large)]
    assert {kind: counts[1][kind] - counts[0][kind] for kind in counts[1]} == {
        "Triton": (2 + 2) * added,
        "product": 0,
        "other": 0,
    }


@pytest.mark.parametrize(("model", "plain", "fused"), [(DIT, 105, 29), (UNet, 301, 107)], ids=["dit", "unet"])
def test_launches_of_a_step(model: type[nn.Module], plain: int, fused: int) -> None:
    """The numbers of the documentation; the whole sampler update is one of the fused ones."""
    network = frozen(model())
    assert count_step(network, 2, fused=False).launches.total() == plain
    assert count_step(network, 2, fused=True).launches.total() == fused


def test_views_launch_nothing_and_biases_of_convolutions_do() -> None:
    x = torch.ones(1, 2, 4, 4)
    with_bias, without = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1, bias=False)

    def launches(run: object) -> dict[str, int]:
        assert callable(run)
        with counted(fused=False) as counter:
            run()
        return dict(counter.launches)

    assert launches(lambda: x.view(2, 16).t()[1:].unsqueeze(0).expand(3, -1, -1)) == {}
    assert launches(lambda: torch.empty_like(x)) == {}
    assert launches(lambda: x + x) == {"other": 1}
    assert launches(lambda: with_bias(x)) == {"convolution": 1, "other": 1}
    assert launches(lambda: without(x)) == {"convolution": 1}


def test_bytes_count_every_operand_once_a_launch() -> None:
    x = torch.ones(10)
    with torch.no_grad(), LaunchCounter() as counter:
        torch.add(x, x)
    assert counter.bytes == 2 * 40  # x in, the sum out


def test_the_roofline_page_is_what_the_script_writes() -> None:
    page = Path(__file__).parents[2] / "docs" / "roofline.md"
    assert page.read_text() == roofline.page()


def test_the_crossing_is_where_a_forward_takes_as_long_as_its_launches() -> None:
    rows = [roofline.Floor(n, n * 989.4e9, 0, 0, 0, 0) for n in (1, 8, 32)]  # a millisecond a row
    assert roofline.crossing(rows, 0.0005) == "less than 1"
    assert roofline.crossing(rows, 0.0045) == "4"  # halfway between 1 and 8
    assert roofline.crossing(rows, 0.1) == "more than 32"
