"""The engine as the event loop sees it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from itertools import count

from models.checkpoint import ModelConfig
from service.engine.plan import compile_plan
from service.engine.request import EngineError, EngineStopped, Request, RequestOutput, SamplingParams
from service.engine.thread import Answer, EngineThread


class AsyncEngine:
    """Awaitable front of an EngineThread.

    Args:
        configs: what each model's weights mean, by model name.
    """

    def __init__(self, thread: EngineThread, configs: dict[str, ModelConfig]):
        self._thread, self.configs = thread, configs
        self._ids = count()

    async def generate(
        self, params: SamplingParams, deadline_seconds: float | None = None
    ) -> AsyncGenerator[RequestOutput]:
        """Run one request; yields its images when they are done, within deadline_seconds if they are given.

        Leaving the iterator early, or being cancelled in it, aborts the request within one step.

        Raises:
            QueueFull, DeadlineUnreachable, DeadlinePassed, RequestFailed, EngineStopped: see request.py.
            ValueError: the model has no such sampler.
        """
        if not self._thread.ready:
            raise EngineStopped("the service is not ready")
        plan = compile_plan(self.configs[params.model], params)
        request = Request(str(next(self._ids)), params, plan, deadline_seconds)
        loop, answers = asyncio.get_running_loop(), asyncio.Queue[Answer]()

        def deliver(answer: Answer) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is waiting any more
                loop.call_soon_threadsafe(answers.put_nowait, answer)

        self._thread.add(request, deliver)
        try:
            answer = await answers.get()
        except BaseException:  # cancelled: the client has gone
            self._thread.abort(request.request_id)
            raise
        if isinstance(answer, EngineError):
            raise answer
        yield answer
