"""A step on its way through the device, and what it gave."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from service.engine.canvas import keep_known
from service.engine.request import ImageTask
from service.engine.slot_table import TaskArrays
from service.engine.trajectory import point
from service.wire.messages import Preview, TrajectoryPoint


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave besides new latents."""

    images: dict[ImageTask, np.ndarray] = field(default_factory=dict)  # finished ones, [H, W, C] uint8
    previews: dict[ImageTask, Preview] = field(default_factory=dict)
    failed: dict[ImageTask, str] = field(default_factory=dict)
    points: dict[ImageTask, TrajectoryPoint] = field(default_factory=dict)


def merged(results: list[StepResult]) -> StepResult:
    """Those of different images as one."""
    images = {task: image for result in results for task, image in result.images.items()}
    previews = {task: preview for result in results for task, preview in result.previews.items()}
    failed = {task: why for result in results for task, why in result.failed.items()}
    points = {task: point for result in results for task, point in result.points.items()}
    return StepResult(images, previews, failed, points)


class Event(Protocol):
    """A point in the device's work, as torch.cuda.Event is."""

    def query(self) -> bool:
        """Whether it has been reached."""
        ...

    def synchronize(self) -> None:
        """Wait until it is."""
        ...


class Completed:
    """The end of a step that has ended when its launch returns, as on a CPU."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


COMPLETED = Completed()


class LaunchedStep:
    """A step on its way through the device; tasks may advance before it is collected.

    Args:
        num_rows: forward rows, with the padding.
        finite: [n or more] bool on the host, valid at the end.
        pixels: [images that are shown, or more, H, W, C] uint8 on the host, likewise.
        end: when all of that is on the host.
        states: x and history of the images in step.recorded, [t, 2, C, H, W] float32 on the host, likewise.
    """

    def __init__(
        self,
        step: TaskArrays,
        num_rows: int,
        finite: Tensor,
        pixels: Tensor,
        end: Event = COMPLETED,
        states: Tensor | None = None,
    ):
        self.num_rows = num_rows
        self.forward = 0  # number that its pictures get
        self._step, self._finite, self._pixels, self.end = step, finite, pixels, end
        self._states = states

    def collect(self) -> StepResult:
        """Waits for the device."""
        self.end.synchronize()
        tasks, steps = self._step.tasks, self._step.steps
        finite = self._finite.numpy()[: len(tasks)]
        failed = {
            tasks[place]: f"the model gave a non-finite image at step {steps[place] + 1}"
            for place in np.flatnonzero(~finite).tolist()
        }
        result = StepResult(failed=failed)
        places = np.flatnonzero(self._step.shown).tolist()
        for place, view in zip(places, self._pixels[: len(places)].numpy(), strict=True):
            task, step = tasks[place], int(steps[place])
            if task in failed:
                continue
            picture = keep_known(view, task.request.params)
            if step == task.last_step:
                # a view would keep all the step's images for the slowest of them
                result.images[task] = picture.copy() if picture is view else picture
                task.forward = self.forward
            else:
                result.previews[task] = Preview(picture.tobytes(), view.shape, task.index, step + 1, self.forward)
        if self._states is not None:
            for place, (x, history) in zip(self._step.recorded, self._states.numpy(), strict=True):
                if (task := tasks[place]) not in failed:
                    result.points[task] = point(self._step, place, x, history)
        return result


@dataclass(frozen=True, slots=True)
class FailedStep:
    """A step whose forward has failed, with what its images gave one by one."""

    result: StepResult
    num_rows: int
    end: Event = COMPLETED

    def collect(self) -> StepResult:
        return self.result
