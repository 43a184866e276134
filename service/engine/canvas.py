"""x before a step where it is not plain noise: interpolated between two seeds, or taken from an image.

A request may bring an image: x starts from it, or keeps a part of it at each step. The step itself does not know.
Its x is painted before it, in launches of their own, which only steps with such a request have.
"""

import numpy as np
import torch

from models.sampling import first_noise, paint
from service.engine.latents import LatentPool
from service.engine.plan import LEVELS
from service.engine.slot_table import TaskArrays
from service.wire.messages import SamplingParams


def paint_before(pool: LatentPool, step: TaskArrays) -> None:
    """Bring x of the images begun and painted to where the step begins; the same again if it is repeated."""
    if step.begun:
        pool.x[_slots(pool, step, step.begun)] = _noise(pool, step, step.begun)
    if step.painted:
        _paint_known(pool, step)


def _slots(pool: LatentPool, step: TaskArrays, places: list[int]) -> torch.Tensor:
    return torch.from_numpy(step.slots[places]).to(pool.x.device)


def _noise(pool: LatentPool, step: TaskArrays, places: list[int]) -> torch.Tensor:
    """The initial noise of these images, [n, C, H, W]."""
    seeds = torch.from_numpy(step.seeds[places]).to(pool.x.device)
    return first_noise(seeds, tuple(pool.x.shape[1:]), [step.tasks[place].slerp for place in places])


def _paint_known(pool: LatentPool, step: TaskArrays) -> None:
    places, (channels, height, width), device = step.painted, pool.x.shape[1:], pool.x.device
    known = [brought(step.tasks[place].request.params, (height, width, channels)) for place in places]
    images, free = (np.stack(arrays) for arrays in zip(*known, strict=True))
    free &= (step.steps[places] > 0)[:, None, None]  # the first step replaces all of x
    found = images, free[:, None], step.numbers[places, LEVELS]
    x0, free, levels = (torch.from_numpy(array).to(device) for array in found)
    x0 = x0.permute(0, 3, 1, 2).float() / 127.5 - 1
    slots = _slots(pool, step, places)
    pool.x[slots] = paint(pool.x[slots], x0, free, levels, _noise(pool, step, places))


def keep_known(picture: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The picture [H, W, C] uint8, with the kept pixels copied from the image of the request."""
    if not params.free:
        return picture
    image, free = brought(params, picture.shape)
    return np.where(free[:, :, None], picture, image)


def brought(params: SamplingParams, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The image of a request, of shape H, W, C, uint8, and which pixels may change, [H, W] bool."""
    image = np.frombuffer(params.image, np.uint8).reshape(shape)
    free = np.frombuffer(params.free, bool).reshape(shape[:2]) if params.free else np.ones(shape[:2], bool)
    return image, free


def check_brought(params: SamplingParams, image_shape: tuple[int, int, int]) -> None:
    """Raises ValueError where the bytes do not fit a model of this shape, C, H, W."""
    C, H, W = image_shape
    if params.image and len(params.image) != C * H * W:
        raise ValueError(f"the image must have {H} x {W} x {C} bytes, not {len(params.image)}")
    if params.free and len(params.free) != H * W:
        raise ValueError(f"what is free must have {H} x {W} bytes, not {len(params.free)}")
    if not params.image and (params.free or params.strength < 1):
        raise ValueError("only an image has a strength or a part that is free")
