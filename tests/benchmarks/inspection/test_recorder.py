"""Launches are written down instead of run."""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from benchmarks.inspection.recorder import recorded_launches
from kernels import gated_residual_layer_norm
from kernels.backend import TRITON_DEVICES


def test_a_launch_is_written_down_with_everything_it_was_given() -> None:
    x, row = torch.zeros(2, 8, 32), torch.zeros(2, 64)
    with recorded_launches() as launches:
        _, out = gated_residual_layer_norm(x, x, None, row[:, :32], row[:, 32:])
    assert out.shape == x.shape
    (launch,) = launches
    assert (launch.name, launch.grid) == ("layer_norm_kernel", (8,))  # two float32 tokens a program
    assert launch.arguments["x"] is x
    assert launch.arguments["gate"] is None
    assert launch.arguments["scale_stride"] == 64
    assert launch.arguments["D"] == 32
    assert launch.options["num_warps"] == 4


def test_outside_and_after_an_error_everything_is_as_it_was() -> None:
    before = set(TRITON_DEVICES)
    with recorded_launches():
        assert {"cpu", "meta"} <= TRITON_DEVICES
    with pytest.raises(ZeroDivisionError), recorded_launches():
        raise ZeroDivisionError
    assert before == TRITON_DEVICES
    x, row = torch.randn(1, 2, 32), torch.zeros(1, 32)
    _, out = gated_residual_layer_norm(x, x, None, row, row)
    torch.testing.assert_close(out.std(-1, correction=0), torch.ones(1, 2), rtol=1e-4, atol=1e-4)


def test_a_needed_gradient_is_no_launch() -> None:
    x, row = torch.zeros(1, 2, 32, requires_grad=True), torch.zeros(1, 32)
    with recorded_launches() as launches:
        gated_residual_layer_norm(x, x, None, row, row)
        assert launches == []
        with torch.no_grad():
            gated_residual_layer_norm(x, x, None, row, row)
    assert len(launches) == 1
