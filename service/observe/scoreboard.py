"""Numbers that all processes of the service see: an entry of float64 for each, which only that process writes.

No lock is needed, so none can be left behind by a process that is killed. Its entry keeps what it has counted.
"""

import mmap
import os
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

DIGITS = (1, 1.5, 2, 3, 5, 7)
# Neighbours at most 1.7x apart, so that a quantile read from them is right to a quarter.
SECONDS = (*(float(f"{digit}e{power}") for power in (-3, -2, -1, 0, 1) for digit in DIGITS), 100.0)
STEP_SECONDS = (*(float(f"{digit}e{power}") for power in (-5, -4, -3, -2, -1) for digit in DIGITS), 1.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
OUTCOMES = ("ok", "rejected", "cancelled", "expired", "error")
REJECTIONS = ("queue_full", "overload", "deadline", "unavailable")
SWAP_OUTCOMES = ("ok", "failed", "refused")
PROTOCOL_REFUSALS = ("malformed-request", "headers-too-large", "overloaded")  # codes of errors
KEY_OUTCOMES = ("accepted", "rate", "concurrency")
WORD = 8  # bytes
STATE, HEARTBEAT, CONNECTIONS = range(3)  # columns

Kind = Literal["counter", "gauge", "histogram"]
State = Literal["starting", "ready", "stopping", "stopped", "dead"]
STATES: tuple[State, ...] = ("starting", "ready", "stopping", "stopped", "dead")


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step, for the metrics."""

    model: str
    seconds: float
    num_rows: int
    num_padding_rows: int = 0


class ModelStats(NamedTuple):
    """A model's state between two steps; the fields are the gauges."""

    queue_depth: int = 0
    running_slots: int = 0
    backlog_seconds: float = 0.0


@dataclass(frozen=True)
class Family:
    """A metric with all its label sets, which exist from the start."""

    name: str  # after diffusion_
    text: str
    kind: Kind
    labels: tuple[str, ...]
    sets: tuple[tuple[str, ...], ...]
    buckets: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """Columns of a label set; of a histogram a count a bucket, one for larger values, and the sum."""
        return len(self.buckets) + 2 if self.kind == "histogram" else 1


def _families(models: Iterable[str], keys: Iterable[str]) -> list[Family]:
    """Every metric but those that are read off the models."""
    each = tuple((model,) for model in models)
    by_outcome = tuple((model, outcome) for (model,) in each for outcome in OUTCOMES)
    by_reason = tuple((model, reason) for (model,) in each for reason in REJECTIONS)
    by_swap = tuple((model, outcome) for (model,) in each for outcome in SWAP_OUTCOMES)
    by_key = tuple((key, outcome) for key in keys for outcome in KEY_OUTCOMES)
    by_key = (("", "unauthorized"), *by_key) if by_key else ()
    one = ("model",)
    return [
        Family("request_duration_seconds", "Arrival to encoded answer", "histogram", one, each, SECONDS),
        Family("request_queue_seconds", "Arrival to first step", "histogram", one, each, SECONDS),
        Family("request_denoise_seconds", "First step to last", "histogram", one, each, SECONDS),
        Family("step_duration_seconds", "One step of the engine", "histogram", one, each, STEP_SECONDS),
        Family("step_rows", "Forward rows of a step", "histogram", one, each, ROWS),
        Family("requests", "Requests by outcome", "counter", (*one, "outcome"), by_outcome),
        Family("rejections", "Refused requests by reason", "counter", (*one, "reason"), by_reason),
        Family("images", "Images generated", "counter", one, each),
        Family("evaluations", "Model evaluations (forward rows)", "counter", one, each),
        Family("padding_rows", "Forward rows that only filled a CUDA graph", "counter", one, each),
        Family("cancelled_evaluations_saved", "Evaluations spared by cancellation", "counter", one, each),
        Family("queue_depth", "Requests that wait for their first step", "gauge", one, each),
        Family("running_slots", "Images that have begun and not ended", "gauge", one, each),
        Family("backlog_seconds", "Device time that accepted requests still need", "gauge", one, each),
        Family("model_swaps", "Swaps of a model's weights by outcome", "counter", (*one, "outcome"), by_swap),
        Family(
            "protocol_refusals", "Connections and requests refused before they were served, by reason",
            "counter", ("reason",), tuple((reason,) for reason in PROTOCOL_REFUSALS),
        ),
        Family("key_requests", "Requests by API key, and refused ones", "counter", ("key", "outcome"), by_key),
    ]  # fmt: skip


class Layout:
    """Where each number stands in an entry.

    Args:
        models: their names.
        keys: names of API keys.
    """

    def __init__(self, models: Iterable[str], keys: Iterable[str]):
        self.models, self.keys = tuple(models), tuple(keys)
        self.families = [family for family in _families(self.models, self.keys) if family.sets]
        self.places: dict[tuple[str, ...], int] = {}  # (family, *labels) -> first column
        self.buckets = {family.name: family.buckets for family in self.families}
        self.width = 3  # of an entry; the engine's state comes first, then a heartbeat, then a worker's connections
        for family in self.families:
            for labels in family.sets:
                self.places[family.name, *labels] = self.width
                self.width += family.width
        for key in self.keys:
            self.places["in_flight", key] = self.width
            self.places["tokens", key] = self.width + 1  # in entry 0, for all workers; then their time
            self.width += 3


class Scoreboard:
    """The table, named as in Apache, which has one of this kind. Entry 0 is the engine's.

    Args:
        descriptor: of the memory that another process has made; None makes it.
    """

    def __init__(self, layout: Layout, entries: int, descriptor: int | None = None):
        self.layout, self.num_entries = layout, entries
        size = entries * layout.width * WORD
        self.descriptor = _memory(size) if descriptor is None else descriptor
        self._cells = memoryview(mmap.mmap(self.descriptor, size)).cast("d")
        if descriptor is None:
            self._cells[HEARTBEAT] = time.monotonic()  # the engine has time to start

    def entry(self, index: int) -> "Entry":
        return Entry(self, index)

    def cells(self, index: int) -> "memoryview[float]":
        """The cells of an entry."""
        start = index * self.layout.width
        return self._cells[start : start + self.layout.width]

    def total(self, column: int) -> float:
        return sum(self.column(column))

    def column(self, column: int) -> Sequence[float]:
        """The numbers of a column, one for each entry."""
        return self._cells[column :: self.layout.width].tolist()

    def release(self, index: int) -> None:
        """Forget what a process that has ended held open; its counts stay."""
        cells, held = self.cells(index), [self.layout.places["in_flight", key] for key in self.layout.keys]
        for column in (CONNECTIONS, *held):
            cells[column] = 0.0

    @contextmanager
    def locked(self, column: int) -> Iterator["memoryview[float]"]:
        """Entry 0, while no other process is in here for the same column. The lock of a killed process is free."""
        import fcntl

        fcntl.lockf(self.descriptor, fcntl.LOCK_EX, WORD, column * WORD)
        try:
            yield self._cells
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN, WORD, column * WORD)

    @property
    def state(self) -> State:
        return STATES[int(self._cells[STATE])]

    @property
    def heartbeat(self) -> float:
        """When the engine last said that it lives, on the monotonic clock that all processes share."""
        return self._cells[HEARTBEAT]


class Entry:
    """One process's part of the scoreboard."""

    def __init__(self, board: Scoreboard, index: int):
        self._places, self._buckets, self._cells = board.layout.places, board.layout.buckets, board.cells(index)

    def beat(self, now: float) -> None:
        self._cells[HEARTBEAT] = now

    def add(self, name: str, *labels: str, value: float = 1.0) -> None:
        self._cells[self._places[name, *labels]] += value

    def set(self, name: str, *labels: str, value: float) -> None:
        self._cells[self._places[name, *labels]] = value

    def hold(self, key: str, requests: int) -> None:
        """Change the number of a key's open requests here."""
        self._cells[self._places["in_flight", key]] += requests

    def connections(self, count: int) -> None:
        self._cells[CONNECTIONS] = count

    def observe(self, name: str, model: str, value: float) -> None:
        buckets, first = self._buckets[name], self._places[name, model]
        self._cells[first + bisect_left(buckets, value)] += 1
        self._cells[first + len(buckets) + 1] += value


class EngineScoreboard(Entry):
    """What the engine writes."""

    def __init__(self, board: Scoreboard):
        super().__init__(board, 0)

    def state(self, state: State) -> None:
        self._cells[STATE] = STATES.index(state)

    def stats(self, stats: dict[str, ModelStats]) -> None:
        for model, values in stats.items():
            for name, value in values._asdict().items():
                self.set(name, model, value=value)

    def step(self, stats: StepStats) -> None:
        self.observe("step_duration_seconds", stats.model, stats.seconds)
        self.observe("step_rows", stats.model, stats.num_rows)
        self.add("evaluations", stats.model, value=stats.num_rows)
        self.add("padding_rows", stats.model, value=stats.num_padding_rows)

    def swapped(self, model: str, outcome: str) -> None:
        self.add("model_swaps", model, outcome)

    def spared(self, model: str, evaluations: int) -> None:
        self.add("cancelled_evaluations_saved", model, value=evaluations)


def _memory(size: int) -> int:
    """An unnamed file in memory, which needs no writable folder; a temporary file where there is no memfd."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("stepwise")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
