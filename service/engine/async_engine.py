"""The engine as the event loop sees it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from itertools import count

from models.checkpoint import ModelConfig
from service.engine.plan import compile_plan
from service.engine.request import EngineError, EngineStopped, Preview, Request, RequestOutput, SamplingParams
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
        self, params: SamplingParams, deadline_seconds: float | None = None, num_previews: int = 0
    ) -> AsyncGenerator[Preview | RequestOutput]:
        """Run one request, within deadline_seconds if they are given; yields previews, then its images.

        Leaving the iterator early, or being cancelled in it, aborts the request within one step.

        Raises:
            QueueFull, DeadlineUnreachable, DeadlinePassed, RequestFailed, EngineStopped: see request.py.
            ValueError: the model has no such sampler.
        """
        if not self._thread.ready:
            raise EngineStopped("the service is not ready")
        plan = compile_plan(self.configs[params.model], params)
        request = Request(str(next(self._ids)), params, plan, deadline_seconds, num_previews)
        loop, answers = asyncio.get_running_loop(), asyncio.Queue[Answer]()

        def deliver(answer: Answer) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody is waiting any more
                loop.call_soon_threadsafe(answers.put_nowait, answer)

        self._thread.add(request, deliver)
        is_open = True
        try:
            while is_open:
                answer = await answers.get()
                is_open = isinstance(answer, Preview)
                if isinstance(answer, EngineError):
                    raise answer
                yield answer
        finally:
            if is_open:  # cancelled or closed: the client has gone
                self._thread.abort(request.request_id)
