"""GroupNorm, then optional FiLM, then optional SiLU: the UNet's most frequent chain as one operation.

Letters: B batch, C channels, H x W pixels. GroupNorm: Wu & He 2018 (arXiv:1803.08494);
FiLM: Perez et al. 2017 (arXiv:1709.07871), here as (1 + scale) * y + shift.
"""

import torch.nn.functional as F
from torch import Tensor


def group_norm_reference(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    silu: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """torch's group_norm keeps its statistics in float32 whatever the dtype of x."""
    y = F.group_norm(x, num_groups, weight, bias, eps)  # [B, C, H, W]
    if scale is not None and shift is not None:
        y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return F.silu(y) if silu else y


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    silu: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """GroupNorm [-> FiLM] [-> SiLU].

    Args:
        x: [B, C, H, W].
        num_groups: divides C.
        weight, bias: [C], the affine of the norm.
        scale, shift: [B, C], both or neither.

    Returns:
        [B, C, H, W] in the dtype of x.

    Raises:
        ValueError: C is no multiple of num_groups, or only one of scale and shift is given.
    """
    if x.shape[1] % num_groups:
        raise ValueError(f"{x.shape[1]} channels do not divide into {num_groups} groups")
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift go together")
    return group_norm_reference(x, num_groups, weight, bias, scale, shift, silu=silu, eps=eps)
