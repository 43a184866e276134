"""The application: loads the models, starts the engine with the server and stops it with it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from fastapi import FastAPI

from models.checkpoint import ModelConfig
from service.cgroup import cpu_quota, cpu_threads
from service.engine.async_engine import AsyncEngine
from service.engine.core import EngineConfig, EngineCore
from service.engine.plan import compile_plan
from service.engine.request import Request, SamplingParams
from service.engine.runner import ModelRunner
from service.engine.simulated import SimulatedRunner
from service.engine.thread import EngineThread
from service.observe import tracing
from service.observe.metrics import Metrics
from service.observe.tracing import OtelSpans, Spans
from service.registry import load_runners, model_entries
from service.settings import Settings
from service.web import dialects, images, info, middleware, openapi
from service.web.generation import Generator
from service.web.methods import HeadMiddleware
from service.web.routes import generate, inference_v2, openai, ops, page, triton
from service.web.schemas import FIELD_NAMES, Fields

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

T = TypeVar("T")
FASTAPI_OPTIONS: dict[str, Any] = {
    "redirect_slashes": False,
    "docs_url": None,  # FastAPI's pages take their scripts from a foreign host
    "redoc_url": None,
    "generate_unique_id_function": lambda route: route.name,  # the operationId, which clients turn into a function
}


def create_app(settings: Settings) -> FastAPI:
    """Load everything; nothing runs until the server starts the lifespan.

    Raises:
        SettingsError, CheckpointError: what is wrong, in one sentence.
    """
    torch.set_num_threads(cpu_threads(settings.threads, torch.get_num_threads(), cpu_quota()))
    runners = load_runners(settings)
    weights = {name: entry.weight for name, entry in model_entries(settings).items()}
    bounds = (settings.max_rows, settings.max_requests, settings.max_evaluations)
    config = EngineConfig(*bounds, _sheds(settings, runners))
    provider = tracing.otlp_provider() if settings.otel else None
    return assemble(EngineCore(runners, config, weights), settings, provider)


def _sheds(settings: Settings, runners: dict[str, ModelRunner]) -> bool:
    """On a CPU few requests are a load that stands, and whoever tries this there would rather wait."""
    if settings.shed_load is not None:
        return settings.shed_load
    return all(runner.describe()["device"] != "cpu" for runner in runners.values())


def assemble(core: EngineCore, settings: Settings, provider: "TracerProvider | None" = None) -> FastAPI:
    """The application around an engine core; spans of its requests go to the provider, if there is one."""
    metrics = Metrics(core.runners)
    relay = LoopRelay()
    thread = EngineThread(core, relay.to(metrics.observe_step), relay.to(_count_saved(metrics)))
    configs = {name: runner.config for name, runner in core.runners.items()}
    metrics.watch(lambda: thread.stats, {name: info.metric_labels(runner) for name, runner in core.runners.items()})

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        relay.loop = asyncio.get_running_loop()
        await asyncio.to_thread(_rehearse, configs)
        thread.start()
        yield
        await asyncio.to_thread(thread.stop, 0.0)  # the server has already waited for its open requests
        if provider is not None:
            await asyncio.to_thread(provider.shutdown)

    version = info.version(info.PROJECT)
    app = FastAPI(title=openapi.TITLE, version=version, lifespan=lifespan, **FASTAPI_OPTIONS)
    app.state.thread, app.state.started = thread, int(time.time())
    simulated = frozenset(name for name, runner in core.runners.items() if isinstance(runner, SimulatedRunner))
    spans = OtelSpans(provider) if provider else Spans()
    generator = Generator(AsyncEngine(thread, configs), metrics, settings, core, simulated, spans, version)
    app.state.generator = generator
    app.state.describe = lambda: [info.describe_model(name, core) for name in core.runners]
    app.state.info = lambda: info.describe_service(core, settings)
    _add_routes(app, settings)
    app.add_middleware(HeadMiddleware)
    middleware.install(app, settings, metrics.registry, provider)
    dialects.install(app, Fields(FIELD_NAMES, generator.limits))
    openapi.install(app, generator)
    return app


def _add_routes(app: FastAPI, settings: Settings) -> None:
    """A path belongs to the first route that matches, so /v2/models/stats stands before /v2/models/{model}."""
    for routes in (page, generate, openai, triton, inference_v2, ops):
        app.include_router(routes.router)
    if settings.metrics_port is None:
        app.include_router(ops.exposition)


def _rehearse(configs: dict[str, ModelConfig]) -> None:
    """What the first request would otherwise pay for: default plans, Pillow's encoders, a worker thread."""
    for name, config in configs.items():
        values = config.default_sampling
        interval = tuple(values["guidance_interval"])
        params = SamplingParams(name, 0, values["steps"], values["sampler"], values["guidance"], interval, (0,))
        compile_plan(config, params)
    for form in ("png", "webp", "jpeg"):
        images.encode([torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()], form)


class LoopRelay:
    """Calls from the engine thread, made on the event loop."""

    loop: asyncio.AbstractEventLoop | None = None

    def to(self, function: Callable[[T], None]) -> Callable[[T], None]:
        def relay(value: T) -> None:
            with suppress(RuntimeError):  # the loop is closed: the last metrics have nobody to read them
                if self.loop is not None:
                    self.loop.call_soon_threadsafe(function, value)

        return relay


def _count_saved(metrics: Metrics) -> Callable[[Request], None]:
    return lambda request: metrics.saved.labels(request.params.model).inc(request.remaining_rows)
