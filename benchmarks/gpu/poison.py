"""A plugin of pytest (-p benchmarks.gpu.poison) that fills the tensors of torch.empty and empty_like with NaN.

So a kernel that leaves an element of its output unwritten fails its test, whatever the memory held before.
"""

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor


def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The allocator `make`, whose floating-point tensors are filled with NaN."""

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
