"""Latents of the running images, preallocated on the device and addressed by slot.

Letters: S slots, C x H x W the image, n images.
"""

import torch
from torch import Tensor

from models.samplers import to_uint8


class LatentPool:
    """x and the sampler's history, float32 whatever the dtype of the weights; a slot never moves.

    Behind the S slots lies a scratch one, which belongs to no image and takes what padding writes.
    """

    def __init__(
        self,
        num_slots: int,
        image_shape: tuple[int, int, int],
        device: torch.device,
        layout: torch.memory_format = torch.contiguous_format,
    ):
        self.scratch_slot = num_slots
        shape = (num_slots + 1, *image_shape)  # [S + 1, C, H, W], laid out as the network likes it
        self.x = torch.empty(shape, device=device, memory_format=layout).zero_()
        self.history = torch.zeros_like(self.x)  # [S + 1, C, H, W]

    def __len__(self) -> int:
        """Slots for images."""
        return self.scratch_slot

    def read(self, slots: Tensor, look: Tensor) -> Tensor:
        """look [n, 2] @ (x, history) of slots [n], clamped and rounded: [n, H, W, C] uint8 on the device."""
        of_x, of_history = look[:, :, None, None, None].unbind(1)
        return to_uint8(of_x * self.x[slots] + of_history * self.history[slots]).permute(0, 2, 3, 1)
