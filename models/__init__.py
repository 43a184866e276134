"""The two networks, and the noise schedules and samplers for training and sampling."""

from models.dit_model import DIT
from models.unet import UNet

__all__ = ["DIT", "UNet"]
