"""A model gets a faster runner of the same weights while it serves: one that takes seconds to make.

A thread makes and measures it, one model at a time. Then it takes over between two steps. Accepted requests keep
the runner that they have. Deterministic ones wait for the new one at their worker, so no link ever has two results.
"""

import logging
import threading
from dataclasses import dataclass, field

from service.engine.core import EngineCore
from service.engine.runner import ModelRunner
from service.engine.versions import is_leaving, switch

logger = logging.getLogger(__name__)


@dataclass
class _Making:
    """A runner that a thread makes."""

    model: str
    before: ModelRunner  # that serves meanwhile
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    made: ModelRunner | Exception | None = None


class Takeovers:
    """Replaces every runner of an engine that has a `make_faster` by the runner that it makes."""

    def __init__(self, core: EngineCore):
        self._core = core
        self._making: _Making | None = None

    @property
    def is_busy(self) -> bool:
        return self._making is not None or self._next() is not None

    def _next(self) -> str | None:
        """A model that is still to get a faster runner."""
        return next((name for name in self._core.models if self._core.runners[name].make_faster is not None), None)

    def advance(self) -> None:
        """Call between two steps while no weights are swapped."""
        if self._making is None:
            if (model := self._next()) is not None:
                self._begin(_Making(model, self._core.runners[model]))
        elif self._has_ended() and not is_leaving(self._core, self._making.model):
            self._end(self._making)
            self._making = None

    def pause(self) -> bool:
        """Stop the thread, until the next advance begins anew; returns whether it has ended."""
        if self._making is not None:
            self._making.stop.set()
            if self._has_ended():
                self._making = None
        return self._making is None

    def end(self) -> None:
        """All models keep what they have."""
        for runner in self._core.runners.values():
            runner.make_faster = None
        if self._making is not None:
            self._making.stop.set()
            self._making = None

    def _has_ended(self) -> bool:
        assert self._making is not None
        assert self._making.thread is not None
        return not self._making.thread.is_alive()

    def _begin(self, making: _Making) -> None:
        """The thread is no daemon: some libraries abort a process that ends while a daemon thread is inside."""
        make, core = making.before.make_faster, self._core
        assert make is not None

        def work() -> None:
            try:
                made = make(making.before, making.stop)
                core.measure(made)
                making.made = made
            except Exception as error:
                making.made = error.with_traceback(None)  # whose frames would keep the weights

        self._making = making
        making.thread = threading.Thread(target=work, name="takeover")
        making.thread.start()

    def _end(self, making: _Making) -> None:
        model, made = making.model, making.made
        making.before.make_faster = None
        if isinstance(made, ModelRunner):
            switch(self._core, model, made, making.before.version)
            logger.info("model %s is served by %s from here on", model, made.backend)
        else:
            why = " ".join(f"{type(made).__name__}: {made}".split())
            logger.warning("model %s stays on %s: %s", model, making.before.backend, why)
