"""Data augmentation: strong random distortions for the judges, shifts and flips for the generators.

Letters: B batch, C x H x W the image.
"""

import math

import torch
from torch import Tensor, nn

ROTATION = math.radians(15)
SHEAR = 0.15
SCALE = 0.12  # each axis by 1 +- this
SHIFT = 2.0  # pixels
ELASTIC = 0.8  # pixels, standard deviation of the displacement at a knot (Simard et al. 2003)
KNOTS = 6  # knots along each side


def distort(x: Tensor) -> Tensor:
    """Each image under its own affine map and elastic displacement. x and result: [B, C, H, W]."""
    B, _, H, W = x.shape
    grid = nn.functional.affine_grid(random_affine(B, W), list(x.shape), align_corners=False)  # [B, H, W, 2]
    knots = torch.randn(B, 2, KNOTS, KNOTS) * (2 * ELASTIC / W)
    waves = nn.functional.interpolate(knots, (H, W), mode="bicubic", align_corners=True)
    grid = grid + waves.permute(0, 2, 3, 1)
    return nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def random_affine(count: int, width: int) -> Tensor:
    """Rotation, shear, scale and shift in the coordinates of affine_grid (-1..1 over the image): [count, 2, 3]."""
    angle, shear, *scale = (torch.rand(4, count) * 2 - 1) * torch.tensor([ROTATION, SHEAR, SCALE, SCALE])[:, None]
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos * (1 + scale[0]), (shear * cos - sin) * (1 + scale[1])], dim=1),
        torch.stack([sin * (1 + scale[0]), (shear * sin + cos) * (1 + scale[1])], dim=1),
    ]
    shift = (torch.rand(count, 2, 1) * 2 - 1) * (2 * SHIFT / width)
    return torch.cat([torch.stack(rows, dim=1), shift], dim=2)


def moved(images: Tensor, shift: int, flip: bool, seed: int) -> Tensor:
    """Shift each image by up to `shift` pixels on both axes; with `flip`, mirror about half of them.

    images, result: [B, C, H, W]. Pixels from outside repeat the border. The result depends on the seed alone.
    """
    if not shift and not flip:
        return images
    B, _, H, W = images.shape
    generator = torch.Generator().manual_seed(seed)
    down, right = torch.randint(-shift, shift + 1, (2, B, 1), generator=generator)  # [B, 1] each
    mirrored = torch.rand(B, 1, generator=generator) < 0.5 * flip
    rows = (torch.arange(H) - down).clamp(0, H - 1)  # [B, H], source row of each row
    columns = (torch.arange(W) - right).clamp(0, W - 1)  # [B, W]
    columns = torch.where(mirrored, columns.flip(1), columns)
    return images[torch.arange(B)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
