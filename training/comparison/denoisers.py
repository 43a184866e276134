"""Analytic denoisers, computed from the training images without learning, as references for trained networks.

A denoised image is the mean of x0 given x = alpha x0 + sigma eps. Three assumptions on the distribution of x0:

optimal  one of the training images (a network that did this would only copy)
wiener   Gaussian, with the mean and the covariance of the training images: the best linear answer
local    for every pixel: the pixel of one of the training images, known only by the patch around it at the same
         place. This is the local score machine of Kamb & Ganguli (arXiv:2412.20292). Their equivariant one also
         compares patches across places, at 1,024 times the cost; and digits lie in the middle of their images.

None of them uses the class. If all channels of the training images are equal, the mean of x over the channels is a
sufficient statistic for x0, with noise smaller by the root of the number of channels. Then only this mean is used.

Letters: N training images, B noisy images, C x H x W the image, R x R the patch.
"""

import math
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 64  # noisy images compared with patches at once
PATCHES = 100_000  # of training images at once: 350 MB in colour at 17 x 17


class Denoisers:
    """All three, of training images [N, C, H, W] in -1..1."""

    def __init__(self, train: Tensor):
        self.channels = train.shape[1]
        self.gray = bool((train == train[:, :1]).all())
        self.train = train[:, :1] if self.gray else train
        self.narrowed = 1 / math.sqrt(self.channels) if self.gray else 1.0  # the noise of the mean
        self.mean = self.train.double().mean(0)  # [C, H, W]
        centred = (self.train.double() - self.mean).flatten(1)
        self.variances, self.axes = torch.linalg.eigh(centred.T @ centred / len(train))  # [P], [P, P]

    def reduced(self, x: Tensor) -> Tensor:
        """x, or its mean over the channels for gray training images."""
        return x.mean(1, keepdim=True) if self.gray else x

    def optimal(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        rows, train = self.reduced(x).double().flatten(1), self.train.double().flatten(1)
        weights = posterior(rows, train, alpha, sigma * self.narrowed)  # [B, N]
        return self.image(weights @ train)

    def wiener(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        gain = alpha * self.variances / (alpha**2 * self.variances + (sigma * self.narrowed) ** 2)
        along = (self.reduced(x).double() - alpha * self.mean).flatten(1) @ self.axes
        return self.image((along * gain) @ self.axes.T + self.mean.flatten())

    def local(self, x: Tensor, alpha: Tensor, sigma: Tensor, size: int) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]. size: R, odd. Pixels of a patch outside the image are ignored.

        alpha, sigma: [B], so that one call has all noise levels, because cutting the patches is the larger cost.
        """
        mean = self.mean.float()  # subtracted to keep the squares small, for float32
        known = margin(self.reduced(x) - alpha[:, None, None, None] * mean, size)
        train = margin(self.train - mean, size)
        slope = alpha[:, None] / (sigma[:, None] * self.narrowed) ** 2  # [B, 1]
        bias = -slope * alpha[:, None] / 2
        answer = torch.empty_like(known[:, :, : x.shape[2], : x.shape[3]])  # [B, C, H, W]
        groups = torch.arange(x.shape[3]).split(max(1, PATCHES // len(train)))
        for row, columns in product(range(x.shape[2]), groups):
            patches = cut(train, row, columns, size)  # [W, N, C*R*R]
            keys = torch.cat([patches, patches.square().sum(2, keepdim=True)], dim=2).transpose(1, 2)
            pixels = self.train[:, :, row, columns].permute(2, 0, 1)  # [W, N, C]
            for part in torch.arange(len(x)).split(CHUNK):
                query = cut(known[part], row, columns, size) * slope[part]  # [W, B, C*R*R]
                query = torch.cat([query, bias[part].expand(len(query), -1, -1)], dim=2)
                answer[part[:, None], :, row, columns] = ((query @ keys).softmax(2) @ pixels).transpose(0, 1)
        return self.image(answer)

    def image(self, rows: Tensor) -> Tensor:
        """Rows as images [B, C, H, W] float32 with all channels."""
        return rows.float().reshape(-1, *self.train.shape[1:]).expand(-1, self.channels, -1, -1)


def posterior(x: Tensor, train: Tensor, alpha: float, sigma: float) -> Tensor:
    """Probability of each training image: [B, P], [N, P] -> [B, N]."""
    return ((alpha * x @ train.T - alpha**2 / 2 * train.square().sum(1)) / sigma**2).softmax(1)


def margin(x: Tensor, size: int) -> Tensor:
    """Zeros around the image, which add nothing to any product."""
    return pad(x, (size // 2,) * 4)


def cut(x: Tensor, row: int, columns: Tensor, size: int) -> Tensor:
    """The patches around some pixels of a row: [B, C, H + R - 1, W + R - 1] -> [W, B, C*R*R]."""
    patches = x[:, :, row : row + size].unfold(3, size, 1)[:, :, :, int(columns[0]) : int(columns[-1]) + 1]
    return patches.permute(3, 0, 1, 2, 4).flatten(2)


def r2(outputs: Tensor, reference: Tensor) -> float:
    """1 - sum |outputs - reference|^2 / sum |outputs - mean|^2, [B, C, H, W] both.

    mean: of the outputs over the images, pixel by pixel. 1: they are equal. 0: the reference tells no more about an
    output than this mean does.
    """
    return 1 - float((outputs - reference).square().sum() / spread(outputs))


def spread(outputs: Tensor) -> Tensor:
    """Sum over all images and pixels; never quite 0."""
    return (outputs - outputs.mean(0)).square().sum().clamp(min=1e-30)
