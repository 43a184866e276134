"""A plugin of pytest (-p benchmarks.gpu.poison): tensors that are allocated empty hold NaN.

A kernel that leaves an element of its output unwritten fails its test then, whatever memory held before.
"""

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor


def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def filled(*args: Any, **kwargs: Any) -> Tensor:
        tensor = make(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    return filled


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    with (
        patch.object(torch, "empty", poisoned(torch.empty)),
        patch.object(torch, "empty_like", poisoned(torch.empty_like)),
    ):
        yield
