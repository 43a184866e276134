"""An engine thread at work, and a desk that keeps every answer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from service.engine.thread import Answer, EngineThread

from service.engine.core import EngineConfig, EngineCore
from service.engine.request import Request
from service.observe.board import StepStats
from tests.service.engine.tiny import Turnstile, make_params, make_request, recording_runner, tiny_config
from tests.waiting import PATIENCE, wait_until


class Desk:
    """Hands requests to an engine and keeps every answer."""

    def __init__(self, engine: EngineThread):
        self.engine = engine
        self.answers: dict[str, list[Answer]] = {}
        self.order: list[str] = []  # of the answers

    def send(self, **changes: Any) -> str:
        request = make_request(make_params(**changes), tiny_config())
        name = request.request_id
        self.answers[name] = []

        def deliver(answer: Answer) -> None:
            self.order.append(name)
            self.answers[name].append(answer)

        self.engine.add(request, deliver)
        return name

    def answer(self, name: str) -> Answer:
        wait_until(lambda: bool(self.answers[name]))
        (answer,) = self.answers[name]
        return answer


def make_core(model: Turnstile, core: type[EngineCore] = EngineCore, **bounds: Any) -> EngineCore:
    return core({"dit": recording_runner(model, tiny_config())}, EngineConfig(4, **bounds))


def stop(engine: EngineThread, drain_seconds: float) -> None:
    """request_stop and join, with a limit of the test's own."""
    engine.request_stop(drain_seconds)
    engine.join(PATIENCE)
    assert engine.dead, "the engine does not stop"


@contextmanager
def running(
    core: EngineCore,
    on_step: Callable[[StepStats], None] = lambda stats: None,
    on_abort: Callable[[Request], None] = lambda request: None,
) -> Iterator[Desk]:
    engine = EngineThread(core, on_step, on_abort)
    engine.start()
    wait_until(lambda: engine.ready or engine.dead)
    try:
        yield Desk(engine)
    finally:
        for runner in core.runners.values():
            if isinstance(runner.model, Turnstile):
                runner.model.open()
        stop(engine, 0.0)
