"""Networks that are slow, that wait or that fail, served by their dotted path."""

import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.dit_model import DIT
from service.settings import ModelEntry
from tests.checkpoints import CLASS_NAMES, TINY
from tests.waiting import PATIENCE, wait_until


def entry(architecture: type[nn.Module], **arguments: Any) -> ModelEntry:
    """A setting that serves this architecture with fresh weights."""
    config = {"arguments": TINY["dit"] | {"num_classes": 3} | arguments, "class_names": CLASS_NAMES}
    return ModelEntry(architecture=f"{architecture.__module__}:{architecture.__name__}", config=config)


def simulated(checkpoint: Path, t0_ms: float, t1_ms: float = 0) -> ModelEntry:
    """A setting that serves no network: a step only takes t0 + t1 * rows."""
    return ModelEntry.model_validate({"checkpoint": checkpoint, "simulate": {"t0_ms": t0_ms, "t1_ms": t1_ms}})


class Slow(DIT):
    """A DIT whose forward takes a while, so that a test can act in the middle of a request."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor, r: Tensor | None = None, w: Tensor | None = None) -> Tensor:
        time.sleep(0.01)
        return super().forward(x, t, y, r, w)


class Stepwise(DIT):
    """A DIT that, once closed, waits for a permit in every forward; served in the test's own process."""

    closed = False
    permits = threading.Semaphore(0)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, r: Tensor | None = None, w: Tensor | None = None) -> Tensor:
        if self.closed and not self.permits.acquire(timeout=PATIENCE):
            raise TimeoutError("the test never let this step pass")
        return super().forward(x, t, y, r, w)


class Gated(DIT):
    """A DIT whose forward waits while the folder has a file `closed`, and says so by a file `waits`."""

    def __init__(self, folder: str, **sizes: Any):
        super().__init__(**sizes)
        self.folder = Path(folder)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, r: Tensor | None = None, w: Tensor | None = None) -> Tensor:
        closed = self.folder / "closed"
        if closed.exists():
            (self.folder / "waits").touch()
            wait_until(lambda: not closed.exists())
        return super().forward(x, t, y, r, w)


class Fragile(DIT):
    """Raises for class 1 and gives NaN for class 2."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor, r: Tensor | None = None, w: Tensor | None = None) -> Tensor:
        if (y == 1).any():
            raise RuntimeError("class 1 breaks this model")
        output = super().forward(x, t, y, r, w)
        return torch.where((y == 2)[:, None, None, None], torch.nan, output)


class Lost(Slow):
    """Loses its device for good when class 1 is asked for, as CUDA does after an illegal access."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor, r: Tensor | None = None, w: Tensor | None = None) -> Tensor:
        if (y == 1).any():
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return super().forward(x, t, y, r, w)


class Held(DIT):
    """A DIT whose constructor waits while the folder has a file `closed`, and says so by a file `waits`."""

    def __init__(self, folder: str, **sizes: Any):
        super().__init__(**sizes)
        closed = Path(folder) / "closed"
        if closed.exists():
            (Path(folder) / "waits").touch()
            wait_until(lambda: not closed.exists())
