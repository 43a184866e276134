"""DIT: a diffusion transformer with grouped-query attention.

Peebles & Xie 2022 (arXiv:2212.09748) with adaLN-zero, and grouped-query attention of Ainslie et al. 2023.
One matrix product computes the modulation of all blocks, instead of one product per block. Parameters and results
are the same.

Letters: B batch, N tokens, D hidden width, P patch, C x S x S the image.
"""

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from kernels import attention, gated_residual_layer_norm, linear_gelu, sinusoidal_embedding
from models.layers import ConditionEmbedder, check, check_whole


class DITBlock(nn.Module):
    """Attention and MLP. DIT.forward applies norms and gates, because it fuses them between branches."""

    def __init__(self, hidden_dim: int, num_heads: int, num_kv_heads: int, mlp_ratio: float):
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        head_dim, mlp_dim = hidden_dim // num_heads, int(hidden_dim * mlp_ratio)
        self.qkv = nn.Linear(hidden_dim, (num_heads + 2 * num_kv_heads) * head_dim)
        self.proj = nn.Linear(hidden_dim, hidden_dim)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_dim, mlp_dim), nn.GELU(approximate="tanh"), nn.Linear(mlp_dim, hidden_dim)
        )

    def attend(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        return self.proj(attention(self.qkv(x), self.num_heads, self.num_kv_heads))  # [B, N, D]

    def transform(self, x: Tensor) -> Tensor:
        """The MLP, [B, N, D] -> [B, N, D]."""
        widen, _, narrow = cast("tuple[nn.Linear, nn.GELU, nn.Linear]", tuple(self.mlp))
        return narrow(linear_gelu(x, widen.weight, widen.bias))


class DIT(nn.Module):
    """Class-conditional diffusion transformer.

    Args:
        image_size, image_channels: the square image [C, S, S].
        patch_size: P, divides image_size; tokens N = (S / P)^2.
        hidden_dim: D, divides into num_heads heads.
        depth: number of blocks.
        num_heads: query heads.
        num_classes: labels 0 .. num_classes - 1; label num_classes is the null class.
        num_kv_heads: key/value heads, fewer than num_heads; default a quarter of them.
        mlp_ratio: width of the MLP over hidden_dim.
        few_step: forward takes r and w; see ConditionEmbedder.

    Raises:
        ValueError: a size is no whole number from 1, or sizes do not fit together; the message says what to change.
    """

    def __init__(
        self,
        image_size: int = 32,
        image_channels: int = 3,
        patch_size: int = 4,
        hidden_dim: int = 768,
        depth: int = 2,
        num_heads: int = 8,
        num_classes: int = 10,
        *,
        num_kv_heads: int | None = None,
        mlp_ratio: float = 4.0,
        few_step: bool = False,
    ):
        super().__init__()
        num_kv_heads = max(1, num_heads // 4) if num_kv_heads is None else num_kv_heads
        check_whole(image_size=image_size, image_channels=image_channels, num_classes=num_classes)
        _check_dit(image_size, patch_size, hidden_dim, depth, num_heads, num_kv_heads, mlp_ratio)
        self.image_size, self.image_channels, self.num_classes = image_size, image_channels, num_classes
        self.patch_size, self.hidden_dim, self.depth = patch_size, hidden_dim, depth

        self.patch_embed = nn.Linear(image_channels * patch_size**2, hidden_dim)
        self.register_buffer("positions", grid_positions(image_size // patch_size, hidden_dim), persistent=False)
        self.condition = ConditionEmbedder(hidden_dim, num_classes, few_step=few_step)
        # shift, scale, gate for attention and MLP of every block, then shift, scale of the last norm
        self.modulation = nn.Linear(hidden_dim, (6 * depth + 2) * hidden_dim)
        self.blocks = nn.ModuleList(
            [DITBlock(hidden_dim, num_heads, num_kv_heads, mlp_ratio) for _ in range(depth)]
        )
        self.reconstruct = nn.Linear(hidden_dim, image_channels * patch_size**2)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in (self.modulation, self.reconstruct):  # adaLN-zero: every block starts as the identity
            nn.init.zeros_(module.weight)

    def patchify(self, x: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, N, C*P*P]."""
        B, C, S, _ = x.shape
        P, n = self.patch_size, S // self.patch_size
        return x.reshape(B, C, n, P, n, P).permute(0, 2, 4, 1, 3, 5).reshape(B, n * n, C * P * P)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """[B, N, C*P*P] -> [B, C, S, S]."""
        P, n, C = self.patch_size, self.image_size // self.patch_size, self.image_channels
        x = tokens.reshape(-1, n, n, C, P, P).permute(0, 3, 1, 4, 2, 5)
        return x.reshape(-1, C, n * P, n * P)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, r: Tensor | None = None, w: Tensor | None = None) -> Tensor:
        """Predict from noisy images.

        x: [B, C, S, S]; t: [B] timesteps on the 0..1000 scale, integer or fractional; y: [B] labels.
        r: [B] timesteps to which the prediction jumps, w: [B] guidance scales; only of a few_step network.
        Returns [B, C, S, S] in the dtype of the weights.
        """
        weight = self.patch_embed.weight
        modulation = self.modulation(self.condition(t, y, r, w))  # [B, (6 * depth + 2) * D]
        modulation = modulation.view(-1, 6 * self.depth + 2, self.hidden_dim).unbind(1)
        patches = self.patch_embed(self.patchify(x.to(weight.dtype)))  # [B, N, D]
        positions = cast(Tensor, self.positions)[None].to(weight.dtype)  # [1, N, D]

        x, h = gated_residual_layer_norm(patches, positions, None, scale=modulation[1], shift=modulation[0])
        for i, block in enumerate(cast("Iterable[DITBlock]", self.blocks)):
            _, _, gate_attention, shift_mlp, scale_mlp, gate_mlp = modulation[6 * i : 6 * i + 6]
            x, h = gated_residual_layer_norm(x, block.attend(h), gate_attention, scale_mlp, shift_mlp)
            next_shift, next_scale = modulation[6 * i + 6 : 6 * i + 8]  # of the next block, or of the last norm
            x, h = gated_residual_layer_norm(x, block.transform(h), gate_mlp, next_scale, next_shift)
        return self.unpatchify(self.reconstruct(h))


def grid_positions(n: int, dim: int) -> Tensor:
    """Sinusoidal embedding of an n x n grid, [n*n, dim]: half of the width for rows, half for columns."""
    row, column = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    halves = [sinusoidal_embedding(axis.flatten(), d) for axis, d in ((row, dim // 2), (column, dim - dim // 2))]
    return torch.cat(halves, dim=1)


def _check_dit(
    image_size: int,
    patch_size: int,
    hidden_dim: int,
    depth: int,
    num_heads: int,
    num_kv_heads: int,
    mlp_ratio: float,
) -> None:
    check_whole(patch_size=patch_size, hidden_dim=hidden_dim, depth=depth)
    check_whole(num_heads=num_heads, num_kv_heads=num_kv_heads)
    check(
        image_size % patch_size == 0,
        f"image_size {image_size} is no multiple of patch_size {patch_size}: change one of them",
    )
    check(
        hidden_dim % num_heads == 0,
        f"hidden_dim {hidden_dim} does not divide into num_heads {num_heads}: make it a multiple of {num_heads}",
    )
    check(
        num_heads % num_kv_heads == 0,
        f"num_kv_heads {num_kv_heads} must divide num_heads {num_heads}",
    )
    check(
        math.isfinite(mlp_ratio) and hidden_dim * mlp_ratio >= 1,
        f"mlp_ratio {mlp_ratio} leaves the MLP no width: make it positive, 4 is usual",
    )
