"""What the other servers share: the simulated device, batches of whole requests, and an image as PNG."""

import io
import json
from collections.abc import Iterable
from typing import NamedTuple

from PIL import Image

from service.engine.simulated_device import SimulatedDevice, StepCost

PICTURE = Image.frombytes(
    "RGB", (32, 32), bytes(48 + 160 * ((x + y) // 4 % 2) for y in range(32) for x in range(96))
)


class Settings(NamedTuple):
    """The arguments that a pipeline takes once for a whole batch, as those of diffusers do."""

    model: str
    steps: int
    guidance: float


class Pipelines:
    """The models on one exclusive device; costs is JSON: {model: [t0_ms, t1_ms]}."""

    def __init__(self, costs: str, max_rows: int):
        self._costs = {name: StepCost(*cost) for name, cost in json.loads(costs).items()}
        self._device, self._max_rows = SimulatedDevice(), max_rows

    def rows(self, settings: Settings) -> int:
        """Of an image: guidance takes a second one, as in the simulated models of our service."""
        return 2 if settings.guidance != 1 else 1

    def run(self, settings: Settings, images: int) -> list[bytes]:
        """Run whole requests of equal settings, as many at once as fit; blocks, and returns a PNG each."""
        rows = self.rows(settings)
        each = self._max_rows // rows
        for count in (min(each, images - start) for start in range(0, images, each)):
            cost = self._costs[settings.model].seconds(count * rows)
            self._device.launch(settings.steps * cost).synchronize()
        return [png() for _ in range(images)]


def png() -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "png")
    return buffer.getvalue()


def groups(batch: Iterable[Settings]) -> dict[Settings, list[int]]:
    """Places in the batch by their settings."""
    found: dict[Settings, list[int]] = {}
    for place, settings in enumerate(batch):
        found.setdefault(settings, []).append(place)
    return found
