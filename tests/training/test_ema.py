"""The average of the weights follows its formula."""

import pytest
import torch
from torch import nn

from training.ema import EMA


def constant(value: float) -> nn.Linear:
    layer = nn.Linear(3, 2)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, value)
    return layer


@pytest.mark.parametrize(
    ("step", "decay"), [(0, 0.1), (1, 2 / 11), (90, 0.91), (10_000, 0.999)], ids=["0", "1", "90", "10000"]
)
def test_one_update(step: int, decay: float) -> None:
    ema = EMA(constant(1.0), decay=0.999)
    ema.update(constant(5.0), step)
    for parameter in ema.model.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, decay * 1 + (1 - decay) * 5))


def test_the_average_follows_the_formula_over_many_updates() -> None:
    ema, expected = EMA(constant(0.0), decay=0.6), 0.0
    for step in range(30):
        ema.update(constant(float(step)), step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(next(ema.model.parameters())[0, 0]) == pytest.approx(expected, rel=1e-5)


def test_the_average_is_a_copy_that_asks_for_no_gradient() -> None:
    model = constant(1.0)
    ema = EMA(model, decay=0.9)
    nn.init.constant_(model.weight, 7.0)
    assert float(next(ema.model.parameters())[0, 0]) == 1.0
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert not ema.model.training
    assert model.weight.requires_grad
