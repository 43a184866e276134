"""The engine without sockets or threads: requests in, one denoising step a call, results out."""

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from service.engine.admission import OverloadGuard, expected_seconds, is_watched, learn
from service.engine.device_clock import DeviceClock
from service.engine.launched import FailedStep, LaunchedStep, StepResult, merged
from service.engine.policy import DeviceShare, Policy, pick
from service.engine.repetition import find_fixed_rows
from service.engine.request import ImageTask, Request, RequestStatus
from service.engine.runner import ModelFailed, ModelRunner, OutOfMemory, device_is_lost
from service.engine.scheduler import Scheduler, SchedulerOutput
from service.errors import FULL_QUEUE, DeadlineUnreachable, InvalidRequest, Overloaded, QueueFull
from service.observe.scoreboard import ModelStats, StepStats
from service.wire.messages import Preview, TrajectoryPoint

logger = logging.getLogger(__name__)

# The host waits on purpose, and a step may end before the wait does. Then this part of the time counts as that of
# the step. If none counted, a host that once took its device for slow would go on waiting for too long: a step of
# 3 ms then took 43.
SURELY_BUSY = 0.5
NUMBER_BITS = 48  # of an engine's first forward number: JSON's numbers are exact up to 53
LEAVING = "/leaving"  # suffix for a model's old version, while requests need it; names have no slash
RETRY_STEPS = 4  # full steps; on the virtual clock half of the refused requests would have been admitted by then


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Bounds of the engine; one for all models."""

    max_rows: int | None = None  # forward rows a step; None: the runner chooses
    max_requests: int = 256  # waiting requests a model
    max_evaluations: int = 50_000  # waiting model evaluations a model
    shed_load: bool = False  # refuse requests that would be late, while an overload lasts
    outside_seconds: float = 0.0  # part of each latency that is spent outside the engine; the order allows for it


@dataclass(frozen=True, slots=True)
class Progress:
    """The result of one call of EngineCore.step."""

    ended: list[Request]
    previews: Sequence[tuple[Request, Preview]] = ()
    stats: StepStats | None = None  # of the step that was collected, if one was
    points: Sequence[tuple[Request, TrajectoryPoint]] = ()  # also of the requests that have finished


@dataclass(frozen=True, slots=True)
class Launch:
    """A step on the device."""

    model: str
    share: DeviceShare
    output: SchedulerOutput
    step: LaunchedStep | FailedStep
    started: float


class EngineCore:
    """Runners and their schedulers behind one step().

    warm_up must have returned before add or step is called.
    """

    def __init__(
        self,
        runners: dict[str, ModelRunner],
        config: EngineConfig,
        weights: dict[str, float] | None = None,
        clock: Callable[[], float] = time.monotonic,
        policy: Policy = pick,
    ):
        self.runners, self.config, self.clock, self.policy = runners, config, clock, policy
        self.models = tuple(runners)  # names; a version that is leaving has a runner and a share, but no name here
        self.weights = weights or {}
        self.shares: dict[str, DeviceShare] = {}
        self._guard = OverloadGuard()
        self._on_device: deque[Launch] = deque()
        self._device = DeviceClock(clock)
        # From anywhere, so that the numbers of two engines behind one address differ.
        self._forwards = {model: count(secrets.randbits(NUMBER_BITS)) for model in runners}

    def warm_up(self, model: str, on_progress: Callable[[], None] = lambda: None) -> int:
        """Make every row count of a model fast, and choose its row cap; on_progress is called in between."""
        cap = self.measure(self.runners[model], on_progress)
        self.shares[model] = self.new_share(model, cap)
        return cap

    def measure(self, runner: ModelRunner, on_progress: Callable[[], None] = lambda: None) -> int:
        """Measure a runner that serves nobody yet: its step times and its determinism. Returns its row cap."""
        cap = runner.warm_up(self.config.max_rows, on_progress)
        runner.repeats_itself = find_fixed_rows(runner, cap) is not None
        return cap

    def new_share(self, model: str, cap: int) -> DeviceShare:
        """A share with an empty queue, for the runner that the model has now."""
        scheduler = Scheduler(
            cap,
            self.config.max_requests,
            self.config.max_evaluations,
            seconds_per_row=lambda: self.shares[model].step_seconds(cap) / cap,
        )
        return DeviceShare(scheduler, self.weights.get(model, 1.0), self.runners[model].seconds)

    @property
    def has_work(self) -> bool:
        return bool(self._on_device) or any(share.scheduler.requests for share in self.shares.values())

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            DeadlineUnreachable, Overloaded, QueueFull: retry_after says in how many seconds to try again. It is
                None where an idle device would refuse the request, too.
            InvalidRequest: an image has more classes than a step has rows.
        """
        share, now = self.shares[request.model], self.clock()
        scheduler = share.scheduler
        if request.most_rows > scheduler.max_rows:
            text = f"an image needs {request.most_rows} rows of a step, which has at most {scheduler.max_rows} here"
            raise InvalidRequest.field("class", text)
        backlog = sum(share.scheduler.backlog_seconds for share in self.shares.values())
        if scheduler.is_full_for(request):  # first, because it costs nothing: refusing must not hold up the steps
            raise QueueFull(FULL_QUEUE, retry_after=backlog)
        idle_seconds = self.runners[request.model].idle_seconds(request, scheduler.max_rows)
        request.idle_seconds = share.slowdown * idle_seconds
        request.outside_seconds = self.config.outside_seconds
        watch = not is_watched(share)
        if watch or request.deadline_seconds is not None:
            request.expected_seconds = expected_seconds(request, self.shares, now, exact=watch)
        expected = request.expected_seconds
        if request.deadline_seconds is not None and expected > request.deadline_seconds:
            text = f"the deadline cannot be met: about {1000 * expected:.0f} ms are needed"
            helps = backlog and request.deadline_seconds >= request.idle_seconds  # else it is refused at any time
            wait = max(expected - request.deadline_seconds, backlog) if helps else None
            raise DeadlineUnreachable.field("deadline_ms", text, wait)
        if self.config.shed_load and self._guard.refuses(request, self.shares, now):
            text = "the device is busy beyond what it can answer in time: try again later"
            raise Overloaded(text, retry_after=self._retry_seconds())
        scheduler.add(request, now)
        if watch:
            share.watched = request

    def _retry_seconds(self) -> float:
        """Time after which the guard usually admits a refused request: some request ends every few steps."""
        busy = [share for share in self.shares.values() if share.scheduler.has_work]
        seconds = sum(share.step_seconds(share.scheduler.max_rows) for share in busy)
        return RETRY_STEPS * seconds / max(1, len(busy))

    def abort(self, request_id: str) -> Request | None:
        aborted = (share.scheduler.abort(request_id, self.clock()) for share in self.shares.values())
        return next((request for request in aborted if request), None)

    def spare_seconds(self) -> float:
        """Time that the next step may wait while the device is busy; requests that arrive meanwhile join it."""
        return self._device.spare_seconds() if self._on_device else 0.0

    def step(self) -> Progress:
        """Expire requests, launch a step of one model, and collect the oldest one.

        Where the host runs ahead of the device, the step just launched stays there and nothing may be collected.
        """
        now = self.clock()
        self._device.end_wait(now)
        expired = [request for share in self.shares.values() for request in share.scheduler.expire(now)]
        for request in expired:
            self._guard.learn(request)
        launched = self._launch(now)
        if launched:
            self._on_device.append(launched)
        ahead = self.runners[launched.model].steps_ahead if launched else 0
        if len(self._on_device) <= ahead:
            return Progress(expired)
        progress = self._collect(self._on_device.popleft())
        progress.ended.extend(expired)
        return progress

    def _launch(self, now: float) -> Launch | None:
        model = self.policy(self.shares, now)
        if model is None:
            return None
        share = self.shares[model]
        output = share.scheduler.schedule(now)
        launch = Launch(model, share, output, self._start(model, output.tasks), now)
        self._device.launched(now, share.step_seconds(launch.step.num_rows), bool(self._on_device))
        share.scheduler.advance(output)
        return launch

    def _collect(self, launch: Launch) -> Progress:
        self._device.ask(launch.step.end.query())
        result = launch.step.collect()
        for task, image in result.images.items():
            task.request.images[task.index] = image
        now, share, model = self.clock(), launch.share, launch.model.removesuffix(LEAVING)
        rest = sum(left.share.step_seconds(left.step.num_rows) for left in self._on_device)
        seconds, is_known = self._device.collected(launch.started, now, rest)
        share.virtual_time += seconds / share.weight
        if not result.failed:  # the time of a step that has failed says nothing
            share.learn_step(launch.step.num_rows, seconds if is_known else SURELY_BUSY * seconds)
        ended = share.scheduler.end(launch.output, result.failed, now)
        for request in ended:
            learn(share, request)
            self._guard.learn(request)
        open_ones = share.scheduler.requests
        num_rows = launch.output.num_rows
        stats = StepStats(model, seconds, num_rows, launch.step.num_rows - num_rows)
        # a request may have been aborted while its step was on the device
        shown = [(task.request, p) for task, p in result.previews.items() if task.request.request_id in open_ones]
        alive = (RequestStatus.RUNNING, RequestStatus.FINISHED)
        points = [(task.request, point) for task, point in result.points.items() if task.request.status in alive]
        return Progress(ended, shown, stats, points)

    def _start(self, model: str, tasks: list[ImageTask]) -> LaunchedStep | FailedStep:
        """Launch a step.

        When the model raises, its images run one by one so that only those that make it raise fail. A lost device,
        or a failure after the forward, ends the engine instead: no later step could be trusted.
        """
        runner = self.runners[model]
        try:
            launched = runner.launch(tasks)
            launched.forward = next(self._forwards[model.removesuffix(LEAVING)])
            return launched
        except ModelFailed as error:
            rows = runner.rows_of(tasks)
            if device_is_lost(error.__cause__):
                raise
            logger.exception("model %s failed on a step of %d images", model, len(tasks))
            if isinstance(error.__cause__, OutOfMemory):
                self._lower_cap(model, rows)
            if len(tasks) == 1 and runner.rows_of(tasks) == rows:  # else it has less padding now
                # the text of the cause may hold what clients must not see
                return FailedStep(StepResult(failed={tasks[0]: f"the model raised {error}"}), rows)
        return FailedStep(merged([self._start(model, [task]).collect() for task in tasks]), rows)

    def _lower_cap(self, model: str, rows: int) -> None:
        """Lower the cap to half of the rows that did not fit, but not below what one image needs in a step."""
        scheduler, runner = self.shares[model].scheduler, self.runners[model]
        least = max([2, *(request.most_rows for request in scheduler.requests.values())])
        scheduler.max_rows = max(least, min(scheduler.max_rows, rows // 2))
        if runner.fixed_rows > scheduler.max_rows:
            # The new count cannot be checked while images are in their slots, so the deterministic mode ends.
            runner.fixed_rows, runner.repeats_itself = scheduler.max_rows, False
        logger.warning(
            "model %s has no memory for %d rows: at most %d from now on", model, rows, scheduler.max_rows
        )

    def stats(self) -> dict[str, ModelStats]:
        """Values of the gauges by model; an old version that is leaving counts with its model."""
        found: dict[str, ModelStats] = {}
        for key, scheduler in ((key, share.scheduler) for key, share in self.shares.items()):
            model = key.removesuffix(LEAVING)
            depth, running, seconds = found.get(model, ModelStats())
            found[model] = ModelStats(
                depth + scheduler.num_waiting, running + len(scheduler.running), seconds + scheduler.backlog_seconds
            )
        return found
