"""From settings to loaded models, and to the engine core that has them. Nothing here knows HTTP."""

import logging
from pathlib import Path

import torch

from models.checkpoint import CheckpointError, ModelConfig, build_model, load_checkpoint, load_config
from models.precision import exact_float32, multiplies_bfloat16
from service.backend import choose_backend
from service.cgroup import cpu_quota, cpu_threads
from service.engine.compiling import compile_ahead
from service.engine.core import EngineConfig, EngineCore
from service.engine.graphs import CudaDevice, GraphRunner
from service.engine.row_cap import row_counts
from service.engine.runner import ModelRunner
from service.engine.simulated import SimulatedRunner
from service.engine.simulated_device import SimulatedDevice, StepCost
from service.settings import MAX_GUIDANCE, ModelEntry, Settings, SettingsError, model_entries

logger = logging.getLogger(__name__)

# The most rows that warm-up tries when the operator sets no cap. On a CPU that is the cap: with 8 rows the shipped
# models reach 85 to 94 % of their best rows per second, with 1 and 2 threads. On an H200 the shipped DiT runs 1.2
# times as many rows a second with 256 as with 128.
MAX_ROWS = {"cpu": 8, "cuda": 512}
OUTSIDE_SECONDS = 0.003  # HTTP takes 1 to 2 ms, and an answer waits for its step to be seen


def load_core(settings: Settings) -> EngineCore:
    """Load every model; nothing is warm yet.

    Raises:
        SettingsError, CheckpointError: what is wrong, in one sentence.
    """
    torch.set_num_threads(cpu_threads(settings.threads, torch.get_num_threads(), cpu_quota()))
    runners = load_runners(settings)
    weights = {name: entry.weight for name, entry in model_entries(settings).items()}
    bounds = (settings.max_rows, settings.max_requests, settings.max_evaluations)
    return EngineCore(runners, EngineConfig(*bounds, _sheds(settings, runners), OUTSIDE_SECONDS), weights)


def _sheds(settings: Settings, runners: dict[str, ModelRunner]) -> bool:
    """A CPU saturates at a few requests, and those who try the service there prefer to wait."""
    if settings.shed_load is not None:
        return settings.shed_load
    return all(runner.describe()["device"] != "cpu" for runner in runners.values())


def load_runners(settings: Settings) -> dict[str, ModelRunner]:
    """A runner for every model, by name.

    Raises:
        SettingsError: nothing to serve, or a device that is not there.
        CheckpointError: a broken checkpoint, named.
    """
    exact_float32()
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    backend = choose_backend(settings.backend, device, dtype, settings.dtype == "int8")
    max_rows = settings.max_rows or MAX_ROWS[device.type]
    graph_device = CudaDevice(device) if device.type == "cuda" and settings.cuda_graphs else None
    simulated = SimulatedDevice()
    entries, runners = model_entries(settings), {}
    helpers = None
    if device.type == "cuda":
        known = {name: e for name, e in entries.items() if e.simulate is None and e.architecture is None}
        helpers = compile_ahead([_config(*item) for item in known.items()], dtype, row_counts(max_rows))
        logger.debug("the device has a context, and helpers compile kernels")
    for name, entry in entries.items():
        if entry.simulate is not None:
            runners[name] = _simulated(name, entry, settings, simulated)
            continue
        model, config = _load(name, entry)
        check_defaults(name, config, settings)
        arguments = (model, config, device, dtype, max_rows)
        runners[name] = (
            GraphRunner(*arguments, graph_device=graph_device) if graph_device else ModelRunner(*arguments)
        )
        if backend is not None:
            runners[name] = backend.serve(name, runners[name], entry.checkpoint, entry.architecture)
        if helpers:
            runners[name].wait_for_quiet = helpers.wait
        logger.debug("model %s has its weights on the device", name)
        try_out(name, runners[name])  # only the network that serves: each row count costs torch's 5 MiB
    return runners


def check_defaults(name: str, config: ModelConfig, settings: Settings) -> None:
    """Defaults that this service would refuse from a client must not come from a checkpoint."""
    for quality, way in config.named_sampling.items():
        steps, guidance = way["steps"], way["guidance"]
        if steps > settings.max_steps or not 0 <= guidance <= MAX_GUIDANCE:
            raise CheckpointError(
                f"model {name}: {quality} steps {steps} and guidance {guidance} are beyond DIFFUSION_MAX_STEPS "
                f"{settings.max_steps} or 0..{MAX_GUIDANCE}"
            )


def try_out(name: str, runner: ModelRunner) -> None:
    """One row through the network, so that a model that cannot be served stops the start.

    Raises:
        CheckpointError: it raises, or its output is no image of the input's shape.
    """
    shape = (1, *runner.config.image_shape)
    if shape[1] not in (1, 3):
        raise CheckpointError(f"model {name}: images of {shape[1]} channels cannot be encoded, only 1 or 3")
    x = torch.zeros(shape, device=runner.device, dtype=runner.dtype)
    t, y = torch.zeros(1, device=runner.device), torch.tensor([runner.config.num_classes], device=runner.device)
    others = (t, torch.ones_like(t)) if runner.config.is_few_step else ()  # r and w
    call = "forward(x, t, y)" if not others else "forward(x, t, y, r, w)"
    try:
        with torch.inference_mode():
            output = runner.model(x, t, y, *others)
    except Exception as error:  # somebody else's code may raise anything
        raise CheckpointError(f"model {name}: {call} raised {type(error).__name__}: {error}") from error
    if getattr(output, "shape", None) != shape:
        raise CheckpointError(f"model {name}: {call} must return {shape} for x of that shape")


def _simulated(name: str, entry: ModelEntry, settings: Settings, device: SimulatedDevice) -> SimulatedRunner:
    assert entry.simulate is not None
    config = _config(name, entry)
    check_defaults(name, config, settings)
    logger.warning("model %s is SIMULATED: it takes time and draws stripes", name)
    cost, max_rows = StepCost(**entry.simulate.model_dump()), settings.max_rows or MAX_ROWS["cuda"]
    return SimulatedRunner(config, cost, max_rows, device)


def _config(name: str, entry: ModelEntry) -> ModelConfig:
    """What the entry says about a model, without its weights."""
    try:
        if entry.checkpoint is not None:
            return load_config(Path(entry.checkpoint))
        return ModelConfig(**{"architecture": "", "arguments": {}} | (entry.config or {}))
    except (CheckpointError, TypeError, ValueError) as error:
        raise CheckpointError(f"model {name}: {error}") from error


def _load(name: str, entry: ModelEntry) -> tuple[torch.nn.Module, ModelConfig]:
    config = _config(name, entry)  # not below, where its error would name the model twice
    try:
        if entry.checkpoint is not None:
            return load_checkpoint(Path(entry.checkpoint), entry.architecture)
        return build_model(config, entry.architecture).eval().requires_grad_(False), config
    except (CheckpointError, TypeError, ValueError) as error:
        raise CheckpointError(f"model {name}: {error}") from error


def choose_device(name: str, given_as: str = "DIFFUSION_DEVICE") -> torch.device:
    """given_as: the setting or argument that an error names."""
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"{given_as} is cuda, but torch finds no CUDA device: use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto is bfloat16 where the hardware multiplies it natively, else float16 on CUDA and float32 on a CPU.

    int8 is auto, too: of its products OpenVINO takes care, and all between them is computed as ever.
    """
    if name not in ("auto", "int8"):
        return getattr(torch, name)
    if multiplies_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32
