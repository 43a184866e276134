"""Requests inside the engine: their plans, images and status."""

import math
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from service.wire.messages import Mixture, SamplingParams

TARGET_FACTOR = 3.0  # target latency over idle latency


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A compiled sampler table with its guidance; shared by all requests that ask for the same."""

    rows: tuple[int, ...]  # forward rows of each step: one for each class, and one more with guidance
    remaining: tuple[int, ...]  # rows from each step to the end, and 0 after the last one
    steps_by_rows: dict[int, int]  # how many steps have so many rows
    numbers: Any = None  # for the runner: see service/engine/plan.py
    classes: int = 1


class RequestStatus(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    ABORTED = "aborted"
    FAILED = "failed"
    EXPIRED = "expired"


@dataclass(slots=True, eq=False)
class ImageTask:
    """One image of a request on its way through the steps."""

    request: "Request"
    index: int
    plan: Plan
    step: int = 0
    slot: int | None = None
    forward: int = 0  # number of the forward that finished it
    last_step: int = field(init=False)

    def __post_init__(self) -> None:
        self.last_step = self.request.params.num_steps - 1

    @property
    def seed(self) -> int:
        return self.request.params.seeds[self.index]

    @property
    def class_label(self) -> int:
        return self.request.params.mixture(self.index)[0][0]

    @property
    def mixture(self) -> Mixture:
        return self.request.params.mixture(self.index)

    @property
    def slerp(self) -> tuple[int, float]:
        """Another seed, and how far from 0 to 1 the initial noise lies on the way to its noise; 0 ignores it."""
        slerps = self.request.params.slerps
        return slerps[self.index] if slerps else (0, 0.0)

    @property
    def rows(self) -> int:
        """Forward rows of the next step."""
        return self.plan.rows[self.step]

    @property
    def remaining_rows(self) -> int:
        """Model evaluations until the image is done."""
        return self.plan.remaining[self.step]


@dataclass(slots=True, eq=False)
class Request:
    """A request inside the engine; times are seconds of the engine's monotonic clock."""

    request_id: str
    params: SamplingParams
    plan: Plan  # of all images, or of the first one
    deadline_seconds: float | None = None  # after its arrival; it expires then
    num_previews: int = 0  # of each image on its way, evenly spread over the steps
    keeps_previews: bool = False  # all of them are sent, however slowly the worker reads
    key: str = ""  # of its runner, where that is not the model's name
    outside_seconds: float = 0.0  # of its latency, before and behind the engine
    idle_seconds: float = 0.0  # what it would take on an idle engine; its target is a multiple of that
    seconds_alone: float = 0.0  # what it would take with its model's work at admission and no other
    expected_seconds: float = 0.0  # latency as it was foretold at admission; 0 where it was not
    arrived: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    status: RequestStatus = RequestStatus.WAITING
    error: str = ""
    preview_steps: frozenset[int] = frozenset()
    tasks: list[ImageTask] = field(default_factory=list)
    images: dict[int, Any] = field(default_factory=dict)  # finished images by index
    plans: tuple[Plan, ...] = ()  # of each image, where they differ

    def __post_init__(self) -> None:
        self.preview_steps = preview_steps(self.num_previews, self.params.num_steps)
        plans = self.plans or (self.plan,) * len(self.params.seeds)
        self.tasks = [ImageTask(self, index, plan) for index, plan in enumerate(plans)]

    @property
    def model(self) -> str:
        """Key of its runner and its share; see service/engine/versions.py."""
        return self.key or self.params.model

    @property
    def remaining_rows(self) -> int:
        # a list: this is asked for at every step
        return sum([task.plan.remaining[task.step] for task in self.tasks])

    @property
    def is_open(self) -> bool:
        return self.status is RequestStatus.WAITING or self.status is RequestStatus.RUNNING

    @property
    def deadline(self) -> float:
        """On the engine's clock; infinity where there is none."""
        return math.inf if self.deadline_seconds is None else self.arrived + self.deadline_seconds

    @property
    def total_rows(self) -> int:
        return sum([task.plan.remaining[0] for task in self.tasks])

    @property
    def steps_by_rows(self) -> dict[int, int]:
        """Number of steps by row count, if its images take each step together."""
        if self.plans:
            return dict(Counter(map(sum, zip(*(plan.rows for plan in self.plans), strict=True))))
        return {len(self.tasks) * rows: steps for rows, steps in self.plan.steps_by_rows.items()}

    @property
    def most_rows(self) -> int:
        """Most rows of a step of one of its images; they must fit into a forward."""
        return max([max(plan.steps_by_rows) for plan in self.plans or (self.plan,)])

    @property
    def target_seconds(self) -> float:
        """Target latency: the deadline, or a multiple of the idle latency, which is earlier for short requests."""
        return TARGET_FACTOR * self.idle_seconds if self.deadline_seconds is None else self.deadline_seconds

    @property
    def needed_seconds(self) -> float:
        """Time to its end if it had the device for itself."""
        return self.idle_seconds * self.remaining_rows / self.total_rows

    def slack(self, now: float) -> float:
        """(target - now - time still needed) / idle latency; negative when the target cannot be met."""
        left = self.arrived + self.target_seconds - self.outside_seconds - now
        return left / max(self.idle_seconds, 1e-9) - self.remaining_rows / self.total_rows


def preview_steps(count: int, num_steps: int) -> frozenset[int]:
    """The steps behind which an image is shown: evenly spread, every one but the last if count reaches that far."""
    return frozenset(round((i + 1) * num_steps / (count + 1)) - 1 for i in range(count)) - {-1, num_steps - 1}
