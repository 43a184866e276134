"""The two networks, and the noise schedules and samplers for training and sampling."""

from typing import Any

__all__ = ["DIT", "UNet"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """DIT and UNet are imported when they are asked for: an HTTP worker reads models.names without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from models import dit_model, unet

    return getattr(dit_model if name == "DIT" else unet, name)
