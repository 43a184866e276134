"""The metrics of a service without requests."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry

from service.observe.metrics import Metrics
from service.observe.scoreboard import Layout, Scoreboard
from service.wire.messages import ModelCard


def registry(keys: Iterable[str] = ()) -> CollectorRegistry:
    """Of one model, dit, and of keys with these names."""
    card = ModelCard(
        name="dit", architecture="dit", parameters=1, image_shape=(1, 8, 8), class_names=["a"],
        samplers={"euler": 10}, sampling={"default": {}}, sha256="", device="cpu", dtype="float32",
        hardware="cpu", simulated=False, build="",
    )  # fmt: skip
    return Metrics(Scoreboard(Layout(["dit"], keys), entries=2), 1, lambda: [card]).registry
