"""The two networks and the mathematics they are trained and sampled under."""

from models.dit_model import DIT
from models.unet import UNet

__all__ = ["DIT", "UNet"]
