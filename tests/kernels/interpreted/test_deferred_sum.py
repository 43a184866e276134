"""The tests of tests/kernels/test_deferred_sum.py with the kernel by the interpreter, and a UNet that uses it."""

import pytest
import torch

from kernels import backend
from models.unet import UNet
from tests.kernels import test_deferred_sum as plain
from tests.models.networks import inputs, randomized

test_equals_the_formula = plain.test_equals_the_formula
test_one_term_is_not_copied = plain.test_one_term_is_not_copied


@pytest.mark.parametrize("channels", [1, 3, 64, 100])
def test_any_width(channels: int) -> None:
    total = plain.total_of("parts+y", (1, channels, 5, 3), torch.float32)
    plain.check(total, "concat_skip", torch.float32, skip_channels=7)


def small_unet() -> torch.nn.Module:
    torch.manual_seed(0)
    return randomized(UNet(8, 2, 16, (1, 2), 1, num_classes=3))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_unet_of_kernels_is_the_unet_of_references(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (x, t, y) = small_unet(), inputs(2, 2, 8, 3)
    monkeypatch.setattr(backend, "TRITON_DEVICES", set())
    expected = model(x, t, y)
    monkeypatch.undo()
    out = model(x.contiguous(memory_format=layout), t, y)
    assert not torch.equal(out, expected)  # other code
    # float32 sums in another order, through ten blocks of activations around 10
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
