"""The networks with their kernels on a GPU against the same networks on the CPU."""

import pytest
import torch
from torch import nn

from models import DIT, UNet
from models.precision import exact_float32
from tests.models.networks import inputs, randomized

NETWORKS = {
    "dit": lambda: DIT(image_size=16, hidden_dim=192, num_heads=4, num_classes=3),
    "few-step dit": lambda: DIT(image_size=16, hidden_dim=192, num_heads=4, num_classes=3, few_step=True),
    "unet": lambda: UNet(image_size=16, base_channels=32, channel_multipliers=(1, 2), num_classes=3),
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    exact_float32()
    torch.manual_seed(0)
    model: nn.Module = randomized(NETWORKS[name]())
    given = inputs(5, 3, 16, 3)
    if name.startswith("few-step"):
        given += (given[1] / 2, torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0]))  # r and w
    expected = model(*given)
    out = model.to("cuda", dtype)(*(tensor.cuda() for tensor in given)).float().cpu()
    # a handful of roundings a layer, through up to 20 layers
    tolerance = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]
    assert (out - expected).norm() < tolerance * expected.norm()
