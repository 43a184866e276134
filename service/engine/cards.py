"""What workers are told about the models: the engine's live objects, as plain data."""

from dataclasses import replace
from importlib.metadata import version

import numpy as np
import torch

from models.checkpoint import ModelConfig
from models.samplers import SAMPLERS, SPACINGS
from service.engine.core import EngineCore
from service.engine.runner import ModelRunner
from service.engine.simulated import SimulatedRunner
from service.wire.messages import Cards, ModelCard


def describe(core: EngineCore) -> Cards:
    cards = [_card(name, core) for name in core.models]
    return Cards(cards, list(SAMPLERS), list(SPACINGS), core.config.shed_load)


def signature(core: EngineCore) -> object:
    """Changes with everything in the cards that can change while the engine runs."""
    return [
        (runner.version, share.scheduler.max_rows, runner.fixed_rows, runner.backend, runner.make_faster is None)
        for runner, share in ((core.runners[name], core.shares.get(name)) for name in core.models)
        if share is not None
    ]


def _card(name: str, core: EngineCore) -> ModelCard:
    runner, share = core.runners[name], core.shares.get(name)
    config = runner.config
    # None makes deterministic requests wait for the final backend, as each backend gives other bits
    repeats = runner.repeats_itself if runner.make_faster is None else None
    return ModelCard(
        name=name,
        architecture=config.architecture,
        parameters=runner.num_parameters,
        image_shape=config.image_shape,
        class_names=config.class_names,
        samplers=samplers_of(config),
        sampling=config.named_sampling,
        guidance_range=config.guidance_range,
        sha256=config.sha256,
        simulated=isinstance(runner, SimulatedRunner),
        hardware=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        build=_build(runner),
        weight=core.weights.get(name, 1.0),
        max_rows=share.scheduler.max_rows if share else None,
        fixed_rows=runner.fixed_rows if repeats else None,
        repeats_itself=repeats,
        step_seconds=dict(sorted(runner.step_seconds.items())) if share else {},
        version=runner.version,
        **runner.describe(),
    )


def _build(runner: ModelRunner) -> str:
    """All that the bits of an image depend on besides its request and weights, with what the weights mean."""
    meaning = replace(runner.config, sampling={}, qualities={}, training={})  # a request brings the first two
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    cpu = (torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    is_torch = runner.backend != "openvino"
    runs = (runner.backend, torch.__version__ if is_torch else version("openvino"), runner.ranges)
    return repr((torch.__version__, np.__version__, runs, gpu, cpu, meaning))


def samplers_of(config: ModelConfig) -> dict[str, int]:
    """Those that the model can do, with their usual steps."""
    return {sampler: config.steps_of(sampler) for sampler in SAMPLERS if _compiles(config, sampler)}


def _compiles(config: ModelConfig, sampler: str) -> bool:
    try:
        config.table(sampler, 2)
    except ValueError:
        return False
    return True
