"""Latents of the running images, preallocated on the device and addressed by slot.

Letters: S slots, C x H x W the image, n images.
"""

import numpy as np
import torch
from torch import Tensor

from kernels.philox import normal
from models.samplers import to_uint8


class LatentPool:
    """x and the sampler's history, float32 whatever the dtype of the weights; a slot never moves."""

    def __init__(self, num_slots: int, image_shape: tuple[int, int, int], device: torch.device):
        self.x = torch.zeros(num_slots, *image_shape, device=device)  # [S, C, H, W]
        self.history = torch.zeros_like(self.x)  # [S, C, H, W]

    def start(self, slots: Tensor, seeds: Tensor) -> None:
        """Fill slots with the initial latents of their seeds; both [n] int64."""
        noise = normal(seeds, torch.zeros_like(seeds), self.x[0].numel())  # [n, C*H*W]
        self.x[slots] = noise.view(-1, *self.x.shape[1:])

    def read(self, slots: Tensor) -> np.ndarray:
        """Finished images of slots [n], clamped and rounded: [n, H, W, C] uint8 in host memory."""
        return to_uint8(self.x[slots]).permute(0, 2, 3, 1).cpu().numpy()
