"""The models, package versions and settings of this service, for /models and /info."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from platform import python_version

from msgspec.structs import asdict

from service.settings import Settings
from service.web.schemas import ModelInfo, ServiceInfo, StepProfile
from service.wire.async_engine import AsyncEngine
from service.wire.messages import ModelCard

PROJECT = "stepwise-diffusion"
PACKAGES = (PROJECT, "torch", "triton", "openvino", "fastapi", "starlette", "uvicorn", "pydantic")


def describe_service(engine: AsyncEngine, settings: Settings) -> ServiceInfo:
    """The answer of /info. It has no secrets: pydantic masks the values of API keys."""
    warm = [card for card in engine.cards.values() if card.max_rows is not None]
    return ServiceInfo(
        versions={"python": python_version()} | {name: version(name) for name in PACKAGES},
        device=next((card.hardware for card in engine.cards.values()), "unknown"),
        settings=settings.model_dump(mode="json"),
        shed_load=engine.shed_load,
        profiles={
            card.name: StepProfile.model_validate(asdict(card) | {"deterministic_rows": card.fixed_rows})
            for card in warm
        },
    )


def version(package: str) -> str:
    """The installed version, or "none", as for this project in a checkout that is run in place."""
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return "none"


def describe_model(card: ModelCard) -> ModelInfo:
    others = {
        "defaults": card.default_sampling,
        "qualities": card.sampling,
        "deterministic": card.repeats_itself,
        "weights_sha256": card.sha256,
        "samplers": list(card.samplers),
    }
    return ModelInfo.model_validate(asdict(card) | others)
