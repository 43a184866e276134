"""Latents of the running images, preallocated on the device and addressed by slot.

Letters: S slots, C x H x W the image.
"""

import torch


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
