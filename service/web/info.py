"""What this service is made of: models, versions, and the settings that are in force."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from platform import python_version

import torch

from models.checkpoint import parameter_count
from models.samplers import SAMPLERS, build_table
from models.schedule import NoiseSchedule, Prediction
from service.engine.core import EngineCore
from service.engine.runner import ModelRunner
from service.settings import Settings
from service.web.schemas import ModelInfo, ServiceInfo, StepProfile

PROJECT = "stepwise-diffusion"
PACKAGES = (PROJECT, "torch", "triton", "fastapi", "starlette", "uvicorn", "pydantic")


def describe_service(core: EngineCore, settings: Settings) -> ServiceInfo:
    """No secret is in it: the value of an API key is masked wherever it is printed."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return ServiceInfo(
        versions={"python": python_version()} | {name: version(name) for name in PACKAGES},
        device=device,
        settings=settings.model_dump(mode="json"),
        shed_load=core.config.shed_load,
        profiles={name: _profile(name, core) for name in list(core.shares)},
    )


def _profile(name: str, core: EngineCore) -> StepProfile:
    runner, share = core.runners[name], core.shares[name]
    return StepProfile(
        max_rows=share.scheduler.max_rows,
        deterministic_rows=runner.fixed_rows if core.repeats_itself.get(name) else None,
        weight=share.weight,
        step_seconds=dict(sorted(runner.step_seconds.items())),
    )


def version(package: str) -> str:
    """ "none" where it is not installed, as in a checkout that is run in place."""
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return "none"


def metric_labels(runner: ModelRunner) -> dict[str, str]:
    """Of diffusion_model_info."""
    config = runner.config
    return {"architecture": config.architecture, "weights_sha256": config.sha256, **runner.describe()}


def describe_model(name: str, core: EngineCore) -> ModelInfo:
    runner, share = core.runners[name], core.shares.get(name)
    config = runner.config
    return ModelInfo(
        name=name,
        architecture=config.architecture,
        parameters=parameter_count(runner.model),
        image_shape=config.image_shape,
        class_names=config.class_names,
        samplers=[sampler for sampler in SAMPLERS if _compiles(config.schedule, config.prediction, sampler)],
        defaults=config.default_sampling,
        max_rows=share.scheduler.max_rows if share else None,
        deterministic=core.repeats_itself.get(name),
        weights_sha256=config.sha256,
        **runner.describe(),
    )


def _compiles(schedule: str, prediction: str, sampler: str) -> bool:
    try:
        build_table(NoiseSchedule(schedule), Prediction(prediction), sampler, 2)
    except ValueError:
        return False
    return True
