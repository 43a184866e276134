"""LayerNorm without affine under adaLN modulation, alone or behind a gated residual.

Letters: B batch, N tokens, D width. adaLN: Peebles & Xie 2022 (arXiv:2212.09748), section 3.2.
"""

import torch.nn.functional as F
from torch import Tensor


def layer_norm_reference(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift; torch's layer_norm keeps its statistics in float32."""
    y = F.layer_norm(x, x.shape[-1:], eps=eps)  # [B, N, D]
    return y * (1 + scale[:, None]) + shift[:, None]


def gated_residual_layer_norm_reference(
    x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    x = x + gate[:, None] * y  # [B, N, D]
    return x, layer_norm_reference(x, scale, shift, eps)


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> Tensor:
    """LayerNorm over the last axis, then (1 + scale) and shift per image.

    Args:
        x: [B, N, D].
        scale, shift: [B, D].

    Returns:
        [B, N, D].

    Raises:
        ValueError: shapes do not match.
    """
    _check(x, scale, shift)
    return layer_norm_reference(x, scale, shift, eps)


def gated_residual_layer_norm(
    x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """x' = x + gate * y and LayerNorm(x') * (1 + scale) + shift, the seam between two halves of a DiT block.

    Args:
        x, y: [B, N, D], the residual stream and the branch that joins it.
        gate, scale, shift: [B, D].

    Returns:
        (x', modulated), both [B, N, D].

    Raises:
        ValueError: shapes do not match.
    """
    _check(x, gate, scale, shift)
    if x.shape != y.shape:
        raise ValueError(f"x {tuple(x.shape)} and y {tuple(y.shape)} differ")
    return gated_residual_layer_norm_reference(x, y, gate, scale, shift, eps)


def _check(x: Tensor, *rows: Tensor) -> None:
    wanted = (x.shape[0], x.shape[-1])
    if any(r.shape != wanted for r in rows):
        got = [tuple(r.shape) for r in rows]
        raise ValueError(f"modulation must be {wanted} for x {tuple(x.shape)}, got {got}")
