"""Data of images by slot, on the host: written when an image takes its slot, read as arrays at each step.

Letters: S slots, n images of a step.
"""

from typing import NamedTuple, cast

import numpy as np

from service.engine.plan import NUM_NUMBERS
from service.engine.request import ImageTask, Plan
from service.wire.messages import Mixture

LEAST_ROWS = 1024  # of the table of plans
NONE = np.zeros(0, np.int64)


class FurtherRows(NamedTuple):
    """Of images of several classes: a row for each class but the first, [m], those of an image together."""

    places: np.ndarray = NONE  # int64, of the images in the step
    labels: np.ndarray = NONE  # int64
    weights: np.ndarray = NONE  # float32


class TaskArrays(NamedTuple):
    """The images of a step as arrays [n]; a snapshot, for the tasks advance while the step is on the device."""

    tasks: list[ImageTask]
    slots: np.ndarray  # int64
    steps: np.ndarray  # int64, from 0
    seeds: np.ndarray  # int64
    labels: np.ndarray  # int64
    second_labels: np.ndarray  # int64, of the second rows; -1 is the null label
    fresh: np.ndarray  # bool: x is noise yet to be drawn
    numbers: np.ndarray  # [n, NUM_NUMBERS] float32, of a plan
    guided: np.ndarray  # bool: with a second row
    shown: np.ndarray  # bool: leaves the device with this step, finished or as a preview
    is_deterministic: bool
    begun: list[int]  # places of images that begin between the noise of two seeds; see service/engine/canvas.py
    painted: list[int]  # places of images whose x is painted before the step, with what a request brought
    further: FurtherRows
    recorded: list[int]  # places of images whose trajectory is recorded; see service/engine/trajectory.py

    @property
    def num_rows(self) -> int:
        return len(self.tasks) + int(np.count_nonzero(self.guided)) + len(self.further.places)

    @property
    def num_shown(self) -> int:
        return int(np.count_nonzero(self.shown))


class SlotTable:
    """Seeds, labels and plans by slot.

    A plan is a range of rows in one table, so that the numbers of all images of a step are one indexed read.
    """

    def __init__(self, num_slots: int):
        self._tasks: list[ImageTask | None] = [None] * num_slots  # who was last seen in each slot
        self._facts = np.zeros((num_slots, 5), np.int64)  # seed, two labels, first row of the plan, last step
        self._previews: dict[int, frozenset[int]] = {}  # by slot
        self._deterministic: set[int] = set()  # slots
        self._slerps: set[int] = set()  # slots whose images begin between the noise of two seeds
        self._mixtures: dict[int, Mixture] = {}  # further classes, by slot
        self._painted: dict[int, bool] = {}  # slots whose requests brought an image: whether they keep a part of it
        self._recorded: set[int] = set()  # slots whose requests ask for the trajectory
        self._numbers = np.zeros((LEAST_ROWS, NUM_NUMBERS), np.float32)
        self._guided = np.zeros(LEAST_ROWS, bool)
        self._plans: dict[int, tuple[Plan, int]] = {}  # with its first row, by identity
        self._used = 0

    def look_up(self, tasks: list[ImageTask]) -> TaskArrays:
        """The arrays of a step of these tasks, each of which holds a slot."""
        seen = self._tasks
        places = [task.slot for task in tasks]
        for task, slot in zip(tasks, cast(list[int], places), strict=True):
            if seen[slot] is not task:
                self._enter(task)
        slots = np.array(places, np.int64)
        steps = np.array([task.step for task in tasks], np.int64)
        seeds, labels, second_labels, first_rows, last_steps = self._facts[slots].T
        rows, shown = first_rows + steps, steps == last_steps
        if self._previews:
            for place, task in enumerate(tasks):
                shown[place] |= task.step in self._previews.get(cast(int, task.slot), ())
        recorded = [place for place, slot in enumerate(places) if slot in self._recorded] if self._recorded else []
        fresh, begun, painted = steps == 0, [], []
        if self._slerps or self._painted:
            begun = [place for place, task in enumerate(tasks) if task.slot in self._slerps and task.step == 0]
            painted = [place for place, task in enumerate(tasks) if self._is_painted(task)]
            fresh[begun + painted] = False
        deterministic = bool(self._deterministic) and not self._deterministic.isdisjoint(slots.tolist())
        found = self._numbers[rows], self._guided[rows]
        further = self._further(places) if self._mixtures else FurtherRows()
        facts = seeds, labels, second_labels
        touched = begun, painted, further, recorded
        return TaskArrays(tasks, slots, steps, *facts, fresh, *found, shown, deterministic, *touched)

    def _further(self, slots: list[int | None]) -> FurtherRows:
        mixtures = ((place, self._mixtures.get(cast(int, slot), ())) for place, slot in enumerate(slots))
        rows = [(place, label, weight) for place, mixture in mixtures for label, weight in mixture]
        if not rows:
            return FurtherRows()
        places, labels, weights = zip(*rows, strict=True)
        return FurtherRows(np.array(places), np.array(labels), np.array(weights, np.float32))

    def _is_painted(self, task: ImageTask) -> bool:
        """At its first step if it starts from an image, later if it keeps a part of one."""
        keeps = self._painted.get(cast(int, task.slot))
        if keeps is None:
            return False
        return keeps and task.step > 0 or task.step == 0 and task.request.params.strength < 1

    def _enter(self, task: ImageTask) -> None:
        slot, request = cast(int, task.slot), task.request
        self._tasks[slot] = task
        negative = request.params.negative_label
        labels = task.class_label, -1 if negative is None else negative
        self._facts[slot] = task.seed, *labels, self._first_row(task.plan), task.last_step
        self._mixtures.pop(slot, None)
        if further := task.mixture[1:]:
            self._mixtures[slot] = further
        self._previews.pop(slot, None)
        if request.preview_steps:
            self._previews[slot] = request.preview_steps
        self._painted.pop(slot, None)
        if request.params.image:
            self._painted[slot] = bool(request.params.mask)
        for slots, belongs in (
            (self._deterministic, request.params.deterministic),
            (self._recorded, request.params.trajectory),
            (self._slerps, bool(task.slerp[1])),
        ):
            slots.discard(slot)
            if belongs:
                slots.add(slot)

    def _first_row(self, plan: Plan) -> int:
        if id(plan) not in self._plans:
            if self._used + len(plan.rows) > len(self._numbers):
                self._make_room()
            if id(plan) not in self._plans:
                self._append(plan)
        return self._plans[id(plan)][1]

    def _append(self, plan: Plan) -> None:
        rows = slice(self._used, self._used + len(plan.rows))
        self._numbers[rows], self._guided[rows] = plan.numbers, np.array(plan.rows) > plan.classes
        self._plans[id(plan)] = plan, self._used
        self._used = rows.stop

    def _make_room(self) -> None:
        """Keep the plans of those who hold a slot, and leave as much room again."""
        holders = [(slot, task) for slot, task in enumerate(self._tasks) if task is not None]
        plans = {id(task.plan): task.plan for _, task in holders}
        capacity = max(LEAST_ROWS, 2 * sum(len(plan.rows) for plan in plans.values()))
        self._numbers, self._guided = np.zeros((capacity, NUM_NUMBERS), np.float32), np.zeros(capacity, bool)
        self._plans, self._used = {}, 0
        for plan in plans.values():
            self._append(plan)
        for slot, task in holders:
            self._facts[slot, 3] = self._plans[id(task.plan)][1]
