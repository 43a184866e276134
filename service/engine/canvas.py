"""x before a step where it is not plain noise: interpolated between two seeds, or taken from an image.

A request may bring an image: x starts from it, or keeps a part of it at each step. The step itself does not know.
Its x is painted before it, in launches of their own, which only steps with such a request have.
"""

import numpy as np
import torch
from torch import Tensor

from models.sampling import first_noise, paint
from service.engine.latents import LatentPool
from service.engine.plan import LEVELS
from service.engine.request import ImageTask
from service.engine.slot_table import TaskArrays
from service.wire.messages import SamplingParams


class Canvas:
    """What images were brought along, by slot on the device, and the noise that their requests began with.

    Each is sent or drawn once. At every step that would hold the device up: a copy from pageable memory waits for
    all that was launched before, and the noise of torch's Philox is about 100 launches of 9 us.
    """

    def __init__(self, pool: LatentPool):
        self._pool, x = pool, pool.x
        self._tasks: dict[int, ImageTask] = {}  # whose image and noise a slot has
        self._images, self._noise = torch.zeros_like(x), torch.zeros_like(x)
        self._free = torch.zeros(len(x), 1, *x.shape[2:], dtype=torch.bool, device=x.device)

    def paint_before(self, step: TaskArrays) -> None:
        """Bring x of the images begun and painted to where the step begins; the same again if it is repeated."""
        if step.begun:
            slots = send(step.slots[step.begun], self._pool.x.device)
            self._pool.x[slots] = self._draw(step, step.begun)
        if step.painted:
            self._enter(step)
            self._paint_known(step)

    def _draw(self, step: TaskArrays, places: list[int]) -> Tensor:
        """The initial noise of these images, [n, C, H, W]."""
        seeds = send(step.seeds[places], self._pool.x.device)
        return first_noise(seeds, tuple(self._pool.x.shape[1:]), [step.tasks[place].slerp for place in places])

    def _enter(self, step: TaskArrays) -> None:
        """Keep what newcomers brought."""
        new = [place for place in step.painted if self._tasks.get(int(step.slots[place])) is not step.tasks[place]]
        if not new:
            return
        (channels, height, width), device = self._pool.x.shape[1:], self._pool.x.device
        known = [brought(step.tasks[place].request.params, (height, width, channels)) for place in new]
        images, free = (send(np.stack(arrays), device) for arrays in zip(*known, strict=True))
        slots = send(step.slots[new], device)
        self._images[slots] = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        self._free[slots], self._noise[slots] = free[:, None], self._draw(step, new)
        self._tasks |= {int(step.slots[place]): step.tasks[place] for place in new}

    def _paint_known(self, step: TaskArrays) -> None:
        places, x = step.painted, self._pool.x
        block = np.empty((len(places), 3), np.int64)  # slot, whether the image has begun, alpha and sigma; one copy
        block[:, 0], block[:, 1] = step.slots[places], step.steps[places] > 0
        block[:, 2:].view(np.float32)[:] = step.numbers[places, LEVELS]
        on_device = send(block, x.device)
        slots, levels = on_device[:, 0], on_device[:, 2:].view(torch.float32)
        free = self._free[slots]
        if not block[:, 1].all():
            free &= on_device[:, 1, None, None, None] > 0  # the first step replaces all of x
        x[slots] = paint(x[slots], self._images[slots], free, levels, self._noise[slots])


def send(array: np.ndarray, device: torch.device) -> Tensor:
    """A tensor on the device, without a wait: from pinned memory, which torch keeps until the copy has ended."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def keep_known(picture: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The picture [H, W, C] uint8, with the kept pixels copied from the image of the request."""
    if not params.mask:
        return picture
    image, free = brought(params, picture.shape)
    return np.where(free[:, :, None], picture, image)


def brought(params: SamplingParams, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The image of a request, of shape H, W, C, uint8, and which pixels may change, [H, W] bool."""
    image = np.frombuffer(params.image, np.uint8).reshape(shape)
    free = np.frombuffer(params.mask, bool).reshape(shape[:2]) if params.mask else np.ones(shape[:2], bool)
    return image, free


def check_brought(params: SamplingParams, image_shape: tuple[int, int, int]) -> None:
    """Raises ValueError where the bytes do not fit a model of this shape, C, H, W."""
    C, H, W = image_shape
    if params.image and len(params.image) != C * H * W:
        raise ValueError(f"the image must have {H} x {W} x {C} bytes, not {len(params.image)}")
    if params.mask and len(params.mask) != H * W:
        raise ValueError(f"the mask must have {H} x {W} bytes, not {len(params.mask)}")
    if not params.image and (params.mask or params.strength < 1):
        raise ValueError("only an image has a strength or a mask")
