"""UNet: residual blocks with GroupNorm, FiLM conditioning and skip connections.

After Ho et al. 2020 (arXiv:2006.11239) and Dhariwal & Nichol 2021 (arXiv:2105.05233): scale-shift conditioning
after the second norm, zero-initialised last convolution of a block, one skip connection per level. One matrix
product computes the FiLM parameters of all blocks.

Convolutions and residual blocks return a DeferredSum: the kernel that follows adds its parts and the residual.

Letters: B batch, C channels, H x W pixels, D width of the condition.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from kernels import DeferredSum, concat_skip, convolve, group_norm, materialize, residual_group_norm, upsample2x
from models.layers import ConditionEmbedder, check, check_whole

CHANNELS_PER_GROUP = 16  # 16 channels of 16 bits are one 32-byte sector of GPU memory


class GroupNorm(nn.Module):
    """GroupNorm [-> FiLM] -> SiLU with 16 channels a group, or the largest divisor of the width below that."""

    def __init__(self, channels: int):
        super().__init__()
        per_group = next(n for n in range(CHANNELS_PER_GROUP, 0, -1) if channels % n == 0)
        self.num_groups = channels // per_group
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor | DeferredSum, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """x: of [B, C, H, W]; scale, shift: [B, C]. Returns [B, C, H, W]."""
        return group_norm(x, self.num_groups, self.weight, self.bias, scale, shift)

    def sum_and_norm(self, x: Tensor | DeferredSum) -> tuple[Tensor, Tensor]:
        """x as a tensor, and SiLU of its norm, both [B, C, H, W]."""
        return residual_group_norm(x, self.num_groups, self.weight, self.bias)


class ResBlock(nn.Module):
    """Input + (norm, SiLU, conv, norm, FiLM, SiLU, conv)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.out_channels = out_channels
        self.norm1, self.conv1 = GroupNorm(in_channels), conv3x3(in_channels, out_channels)
        self.norm2, self.conv2 = GroupNorm(out_channels), conv3x3(out_channels, out_channels)
        same = in_channels == out_channels
        self.skip: nn.Identity | nn.Conv2d = (
            nn.Identity() if same else nn.Conv2d(in_channels, out_channels, kernel_size=1)
        )
        nn.init.zeros_(self.conv2.weight)  # a block starts close to the identity

    def forward(self, x: Tensor | DeferredSum, scale: Tensor, shift: Tensor) -> DeferredSum:
        """x: of [B, C_in, H, W]; scale, shift: [B, C_out]. Returns a sum of [B, C_out, H, W]."""
        stream, h = self.norm1.sum_and_norm(x)
        h = self.norm2(convolve(self.conv1, h), scale, shift)
        skip = stream if isinstance(self.skip, nn.Identity) else convolve(self.skip, stream, split=False).x
        return DeferredSum(convolve(self.conv2, h).x, skip)


class UNet(nn.Module):
    """Class-conditional convolutional UNet.

    Args:
        image_size, image_channels: the square image [C, S, S].
        base_channels: width at full resolution.
        channel_multipliers: width of each resolution, as a multiple of base_channels; each entry after the first
            halves the image.
        num_res_blocks: residual blocks per resolution, on the way down and on the way up.
        num_classes: labels 0 .. num_classes - 1; label num_classes is the null class.
        num_mid_blocks: residual blocks at the lowest resolution, between down and up.
        condition_dim: width of the condition; default 4 * base_channels.
        few_step: forward takes r and w; see ConditionEmbedder.

    Raises:
        ValueError: a size is no whole number from 1, or sizes do not fit together; the message says what to change.
    """

    def __init__(
        self,
        image_size: int = 32,
        image_channels: int = 3,
        base_channels: int = 64,
        channel_multipliers: tuple[int, ...] = (1, 2, 4, 8),
        num_res_blocks: int = 2,
        num_classes: int = 10,
        *,
        num_mid_blocks: int = 2,
        condition_dim: int | None = None,
        few_step: bool = False,
    ):
        super().__init__()
        check_whole(image_size=image_size, image_channels=image_channels, num_classes=num_classes)
        _check_unet(image_size, base_channels, channel_multipliers, num_res_blocks, num_mid_blocks, condition_dim)
        self.image_size, self.image_channels, self.num_classes = image_size, image_channels, num_classes
        widths = [base_channels * m for m in channel_multipliers]  # full resolution first
        dim = 4 * base_channels if condition_dim is None else condition_dim

        self.condition = ConditionEmbedder(dim, num_classes, few_step=few_step)
        self.conv_in = conv3x3(image_channels, widths[0])
        self.down = nn.ModuleList([res_blocks(a, b, num_res_blocks) for a, b in pairwise([widths[0], *widths])])
        self.downsample = nn.ModuleList([conv3x3(width, width, stride=2) for width in widths[:-1]])
        self.mid = res_blocks(widths[-1], widths[-1], num_mid_blocks)
        self.up = nn.ModuleList(
            [res_blocks(a + b, b, num_res_blocks) for a, b in pairwise([widths[-1], *reversed(widths)])]
        )
        self.upsample = nn.ModuleList([conv3x3(width, width) for width in reversed(widths[1:])])
        self.norm_out, self.conv_out = GroupNorm(widths[0]), conv3x3(widths[0], image_channels)
        nn.init.zeros_(self.conv_out.weight)

        # modules() lists the blocks in the order in which forward runs them
        self.film_widths = [m.out_channels for m in self.modules() if isinstance(m, ResBlock)]
        self.film = nn.Linear(dim, 2 * sum(self.film_widths))

    def forward(self, x: Tensor, t: Tensor, y: Tensor, r: Tensor | None = None, w: Tensor | None = None) -> Tensor:
        """Predict from noisy images.

        x: [B, C, S, S]; t: [B] timesteps on the 0..1000 scale, integer or fractional; y: [B] labels.
        r: [B] timesteps to which the prediction jumps, w: [B] guidance scales; only of a few_step network.
        Returns [B, C, S, S] in the dtype of the weights.
        """
        film = self.film(self.condition(t, y, r, w))  # [B, 2 * sum(film_widths)]
        scale_and_shift = iter(film.split([w for width in self.film_widths for w in (width, width)], dim=1))

        def run(blocks: nn.Module, h: Tensor | DeferredSum) -> Tensor | DeferredSum:
            for block in blocks.children():
                h = block(h, next(scale_and_shift), next(scale_and_shift))
            return h

        h = convolve(self.conv_in, x.to(self.conv_in.weight.dtype))  # [B, base, S, S]
        skips = []
        for level, blocks in enumerate(self.down):
            h = materialize(run(blocks, h))
            skips.append(h)
            if level < len(self.downsample):
                h = convolve(self.downsample[level], h)  # [B, C, H/2, W/2]
        h = run(self.mid, h)
        for level, blocks in enumerate(self.up):
            h = run(blocks, concat_skip(h, skips.pop()))
            if level < len(self.upsample):
                h = convolve(self.upsample[level], upsample2x(h))  # [B, C, 2H, 2W]
        return convolve(self.conv_out, self.norm_out(h), split=False).x


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)


def res_blocks(in_channels: int, out_channels: int, count: int) -> nn.ModuleList:
    """`count` blocks; the first one changes the width."""
    widths = [in_channels] + [out_channels] * count
    return nn.ModuleList([ResBlock(a, b) for a, b in pairwise(widths)])


def _check_unet(
    image_size: int,
    base_channels: int,
    channel_multipliers: tuple[int, ...],
    num_res_blocks: int,
    num_mid_blocks: int,
    condition_dim: int | None,
) -> None:
    check_whole(base_channels=base_channels, num_res_blocks=num_res_blocks)
    check(
        len(channel_multipliers) >= 1 and all(type(m) is int and m >= 1 for m in channel_multipliers),
        f"channel_multipliers must be positive whole numbers, one a resolution, got {channel_multipliers}",
    )
    factor = 2 ** (len(channel_multipliers) - 1)
    check(
        image_size % factor == 0,
        f"image_size {image_size} cannot be halved {len(channel_multipliers) - 1} times: make it a multiple of "
        f"{factor} or use fewer channel_multipliers",
    )
    check(
        type(num_mid_blocks) is int and num_mid_blocks >= 0,
        f"num_mid_blocks must be a whole number from 0, got {num_mid_blocks!r}",
    )
    if condition_dim is not None:
        check_whole(condition_dim=condition_dim)
