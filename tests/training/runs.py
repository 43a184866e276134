"""Trainings of the tests: their type, how they end early, and how their states are compared."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from training.config import TrainConfig
from training.processes import Processes
from training.train import Trainer

Config = Callable[..., TrainConfig]  # the fixture tiny_config
ALONE = Processes(0, 1, torch.device("cpu"))


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], rtol: float = 0, atol: float = 0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=atol, msg=name)


@contextmanager
def at_step(step: int, act: Callable[[], object]) -> Iterator[None]:
    """Runs in this block call `act` when they have taken so many steps."""
    train_step = Trainer.train_step

    def acted(self: Trainer) -> Tensor:
        if self.step == step:
            act()
        return train_step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", acted)
        yield


@contextmanager
def cut_off(step: int) -> Iterator[None]:
    """The run in this block ends after so many steps, as in a power cut."""

    def cut() -> None:
        raise KeyboardInterrupt

    with at_step(step, cut), pytest.raises(KeyboardInterrupt):
        yield
