"""Tiles: pictures of 32x32 pixels in 10 classes, drawn by code from a seed, with rules that code can check.

So samples of a network can be graded without a classifier, which would have to be trained and could err.

The far rule: two square patches in opposite corners, 24 pixels apart in both directions, have the same colour, one
of eight. The near rule: two patches side by side, 8 pixels apart, also have one colour. Both colours are random and
independent of the class, so a network has to make its two patches agree. All patches have the same position on any
grid of 4 or 8 pixels, so that far and near differ in the distance alone.

The class determines the hue of the ground and the stripes of the panel: their direction and their period, 2.6 or
3.6 pixels. The texture rule: the stripes are regular and in full contrast in each quarter of the panel.

The offset of the stripes is random, and so are contrast and all colours within JITTER. Without that, pictures would
have near duplicates, and held-out pictures would count as copies.

Letters: N images, H x W pixels (always 32 x 32), h x w those of the panel, Q of its quarters, P patches, K classes.
"""

import colorsys
import math

import torch
from torch import Tensor

SIDE, PATCH = 32, 6
CLASSES = ["clay", "ochre", "moss", "leaf", "jade", "teal", "steel", "iris", "plum", "rose"]
PALETTE = {
    "red": (228, 50, 50),
    "green": (50, 216, 76),
    "blue": (48, 78, 222),
    "yellow": (246, 214, 66),
    "violet": (206, 64, 220),
    "cyan": (62, 214, 222),
    "white": (244, 244, 240),
    "black": (26, 24, 34),
}
PATCHES = {"far": ((1, 1), (25, 25)), "near": ((1, 17), (1, 25))}  # row and column of the upper left corner
PANEL = slice(9, 31), slice(1, 23)
PERIODS, DIRECTIONS = (2.6, 3.6), 5  # pixels; no divisors of 4, or all tokens of the DiT would be alike
GROUND = 0.5, 0.62  # saturation and value of the hues
CONTRAST = 44.0  # amplitude of the stripes, of 255
JITTER = {"ground": 8.0, "panel": 20.0, "patch": 8.0, "contrast": 4.0}  # from picture to picture, at most, of 255

# The limits of the rules. Tests show what passes and what does not.
PATCH_RADIUS = 50.0  # RGB distance to a colour of the palette: no two of these lie within 100, no ground within 50
GROUND_RADIUS = 36.0  # to the ground of the class; of ten, it must be the nearest, too
FULL_CONTRAST = 0.6 * CONTRAST  # a box of 3x3 pixels leaves at most a third
EXPLAINED = 0.6  # of the variance of a quarter of the panel, by its stripes


def draw_tiles(labels: Tensor, seed: int) -> Tensor:
    """Pictures of the classes `labels` [N]: [N, 3, H, W] uint8."""
    generator, count = torch.Generator().manual_seed(seed), len(labels)

    def around(size: float, *shape: int) -> Tensor:
        return (2 * torch.rand(count, *shape, generator=generator, dtype=torch.float64) - 1) * size

    ground = grounds()[labels] + around(JITTER["ground"], 3)
    images = ground[:, :, None, None].repeat(1, 1, SIDE, SIDE)
    amplitude = CONTRAST + around(JITTER["contrast"], 1, 1)
    phase = around(math.pi, 1, 1)
    images[:, :, *PANEL] += around(JITTER["panel"], 3, 1, 1)
    images[:, :, *PANEL] += (amplitude * torch.cos(stripes()[labels] + phase))[:, None]
    for corners in PATCHES.values():
        colours = palette()[torch.randint(len(PALETTE), (count,), generator=generator)]
        colours += around(JITTER["patch"], 3)
        for row, column in corners:
            images[:, :, row : row + PATCH, column : column + PATCH] = colours[:, :, None, None]
    return images.round().clamp(0, 255).byte()


def rule_shares(images: Tensor, labels: Tensor) -> dict[str, float]:
    """Shares of the images [N, 3, H, W] uint8 that keep each rule; labels [N]: the classes asked for."""
    kept = kept_rules(images, labels)
    return {"samples": len(images)} | {name: rule.double().mean().item() for name, rule in kept.items()}


def kept_rules(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Which images keep far, near, texture and coherent, and have far_clear and near_clear: [N] bool each.

    coherent: every rule between parts of the image: far, near, and one ground, that of the class, on all sides.
    clear: both patches have a colour of the palette, whether the same or not. A network whose patches are seldom
    clear has not learnt the colours; one whose clear patches seldom agree has not learnt the rule.
    """
    pixels = images.double()
    patches = {name: clear_and_equal(pixels, corners) for name, corners in PATCHES.items()}
    kept = {name: clear & equal for name, (clear, equal) in patches.items()}
    kept["texture"] = regular_stripes(pixels, labels)
    kept["coherent"] = kept["far"] & kept["near"] & one_ground(pixels, labels)
    return kept | {f"{name}_clear": clear for name, (clear, _) in patches.items()}


def clear_and_equal(pixels: Tensor, corners: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
    """Whether all patches are near a colour of the palette, and nearest to the same one: [N] bool each.

    The outermost pixels of a patch are ignored, so that blurred edges do not change its colour.
    """
    parts = [pixels[:, :, row + 1 : row + PATCH - 1, column + 1 : column + PATCH - 1] for row, column in corners]
    means = torch.stack([part.mean((2, 3)) for part in parts], dim=1)  # [N, P, 3]
    distance, index = torch.cdist(means, palette()).min(2)
    return (distance < PATCH_RADIUS).all(1), (index == index[:, :1]).all(1)


def regular_stripes(pixels: Tensor, labels: Tensor) -> Tensor:
    """Whether stripes of the class, fitted by least squares, explain each quarter of the panel: [N] bool.

    Each quarter has a fit of its own, because the rule is about details: 11 pixels hold three or four periods.
    """
    panel = quarters(pixels[:, :, *PANEL].mean(1))[..., None]  # [N, 4, Q, 1]
    phase = quarters(stripes())[labels]  # [N, 4, Q]
    waves = torch.stack([phase.cos(), phase.sin(), torch.ones_like(phase)], dim=-1)  # [N, 4, Q, 3]
    fit = torch.linalg.lstsq(waves, panel).solution  # [N, 4, 3, 1]
    rest, varied = (panel - waves @ fit).square().sum(2), (panel - panel.mean(2, keepdim=True)).square().sum(2)
    contrast = fit[:, :, :2].norm(dim=2)  # [N, 4, 1], as rest and varied
    return ((contrast > FULL_CONTRAST) & (rest < (1 - EXPLAINED) * varied)).all(1).flatten()


def quarters(panel: Tensor) -> Tensor:
    """The quarters of [N, h, w], each in a row: [N, 4, h w / 4]."""
    return torch.stack([part.flatten(1) for half in panel.chunk(2, 1) for part in half.chunk(2, 2)], dim=1)


def one_ground(pixels: Tensor, labels: Tensor) -> Tensor:
    """Whether the ground in each quarter of the image has the colour of the class: [N] bool."""
    mask = ground_mask().double()
    share = torch.nn.functional.adaptive_avg_pool2d(mask[None, None], 2)
    means = torch.nn.functional.adaptive_avg_pool2d(pixels * mask, 2) / share  # [N, 3, 2, 2]
    distance = torch.cdist(means.flatten(2).transpose(1, 2), grounds())  # [N, 4, K]
    nearest, index = distance.min(2)
    return ((index == labels[:, None]) & (nearest < GROUND_RADIUS)).all(1)


def ground_mask() -> Tensor:
    """[H, W] bool: neither panel nor patch."""
    mask = torch.ones(SIDE, SIDE, dtype=torch.bool)
    mask[PANEL] = False
    for row, column in (corner for corners in PATCHES.values() for corner in corners):
        mask[row : row + PATCH, column : column + PATCH] = False
    return mask


def palette() -> Tensor:
    """[8, 3] float64, of 255."""
    return torch.tensor(list(PALETTE.values()), dtype=torch.float64)


def grounds() -> Tensor:
    """[K, 3] float64, of 255: hues in equal steps."""
    colours = [colorsys.hsv_to_rgb(k / len(CLASSES), *GROUND) for k in range(len(CLASSES))]
    return 255 * torch.tensor(colours, dtype=torch.float64)


def stripes() -> Tensor:
    """Phases of the stripes of each class without offset: [K, h, w] float64.

    Neighbouring hues differ in the period, and every second one in the direction.
    """
    rows, columns = (torch.arange(SIDE, dtype=torch.float64)[part] for part in PANEL)
    waves = []
    for label in range(len(CLASSES)):
        angle, period = math.pi * (label // 2) / DIRECTIONS, PERIODS[label % 2]
        steps = rows[:, None] * math.sin(angle) + columns * math.cos(angle)
        waves.append(2 * math.pi * steps / period)
    return torch.stack(waves)
