"""Checkpoints: model.safetensors (weights) beside config.json (everything the weights mean).

Nothing here executes what it reads: weights are safetensors, and a config may only name the architectures of
this project. Any other class must be named by the operator (`package.module:Class`), never by a file.
"""

import hashlib
import importlib
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from models.dit_model import DIT
from models.files import CONFIG, WEIGHTS, replace_file, sha256_of
from models.names import check_class_names
from models.samplers import FEW, JUMPING, USUAL, SamplerTable, build_table
from models.schedule import NoiseSchedule, Prediction
from models.unet import UNet

ARCHITECTURES: dict[str, type[nn.Module]] = {"dit": DIT, "unet": UNet}
# What DistributedDataParallel, torch.compile and EMA wrappers write before the name of every tensor.
WRAPPERS = ("module.", "_orig_mod.", "ema_model.")
NAMED = 3  # names of tensors in an error; a network has hundreds
DEFAULT_SAMPLING: dict[str, Any] = {
    "sampler": "dpmpp_2m", "steps": 10, "spacing": "trailing", "guidance": 1.5, "guidance_interval": (0.0, 1.0),
}  # fmt: skip
QUALITIES = ("draft", "default", "best")  # named ways to sample
FIELD_TYPES: dict[str, type] = {
    "architecture": str, "arguments": dict, "schedule": str, "prediction": str, "class_names": list,
    "sampling": dict, "qualities": dict, "training": dict, "sha256": str,
}  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class ModelConfig:
    """What the weights of a checkpoint mean."""

    architecture: str  # "dit" or "unet"
    arguments: dict[str, Any]  # of the architecture's constructor
    schedule: str = "flow"  # see NoiseSchedule
    prediction: str = "x0"  # see Prediction
    class_names: list[str] = field(default_factory=lambda: [str(i) for i in range(10)])
    sampling: dict[str, Any] = field(default_factory=dict)  # what differs from DEFAULT_SAMPLING
    qualities: dict[str, dict[str, Any]] = field(default_factory=dict)  # draft and best: what differs from sampling
    training: dict[str, Any] = field(default_factory=dict)  # facts: data, images seen, seconds, seed, commit
    sha256: str = ""  # of the weights file
    shape: tuple[int, int, int] | None = None  # C, H, W, where the arguments do not tell
    # Of a network that was tuned for few steps: guidance scales that are its input w. Its forward takes r and w.
    guidance_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, kind in FIELD_TYPES.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} must be a {kind.__name__}, got {getattr(self, name)!r}")
        if self.shape is not None and (len(self.shape) != 3 or not all(type(n) is int for n in self.shape)):
            raise ValueError(f"shape must be three whole numbers, C, H, W, got {self.shape}")
        if self.guidance_range is not None:
            self._check_few_step(self.guidance_range)
            low, high = self.guidance_range
            object.__setattr__(self, "guidance_range", (low, high))  # of a list from JSON: plans are kept by it
        NoiseSchedule(self.schedule)
        if self.prediction not in list(Prediction):
            raise ValueError(f"unknown prediction {self.prediction!r}: use one of {', '.join(Prediction)}")
        if not self.class_names or not all(isinstance(name, str) for name in self.class_names):
            raise ValueError("class_names must be a list with one name a class")
        check_class_names(self.class_names)
        if unknown := self.qualities.keys() - {"draft", "best"}:
            raise ValueError(f"qualities knows draft and best, not {', '.join(sorted(unknown))}")
        self._check_sampling("sampling", self.sampling)
        for name, values in self.qualities.items():
            self._check_sampling(f"qualities: {name}", values)

    def _check_few_step(self, guidance: Any) -> None:
        numbers = isinstance(guidance, list | tuple) and all(isinstance(x, int | float) for x in guidance)
        if not numbers or len(guidance) != 2 or not guidance[0] <= 1 <= guidance[1] < math.inf:
            raise ValueError(f"guidance_range must be two numbers around 1, got {guidance!r}")
        if self.architecture in ARCHITECTURES and not self.arguments.get("few_step"):
            raise ValueError("guidance_range needs few_step among the arguments of the network")

    def _check_sampling(self, name: str, given: Any) -> None:
        if not isinstance(given, dict):
            raise ValueError(f"{name} must be a dict, got {given!r}")
        if unknown := given.keys() - DEFAULT_SAMPLING.keys():
            raise ValueError(f"{name} knows {', '.join(DEFAULT_SAMPLING)}, not {', '.join(sorted(unknown))}")
        values = self.default_sampling | given
        try:
            low, high = values["guidance_interval"]
            if not 0 <= low <= high <= 1 or not math.isfinite(values["guidance"]):
                raise ValueError("guidance must be finite and guidance_interval lie in 0..1, low before high")
            if type(values["steps"]) is not int:
                raise ValueError("steps must be a whole number")
            for spacing in ("trailing", values["spacing"]):  # every model can do the first, which warm-ups use
                self.table(values["sampler"], values["steps"], spacing)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} {values}: {error}") from error

    @property
    def is_few_step(self) -> bool:
        """Whether the network takes r and w."""
        return self.guidance_range is not None

    @property
    def two_row_guidance(self) -> float:
        """A guidance scale that costs a second row."""
        return 1.5 if self.guidance_range is None else self.guidance_range[1] + 1

    def table(self, sampler: str, steps: int, spacing: str = "trailing", strength: float = 1.0) -> SamplerTable:
        """Raises ValueError where this model has no such sampler."""
        schedule, prediction = NoiseSchedule(self.schedule), Prediction(self.prediction)
        more = {"spacing": spacing, "few_step": self.is_few_step, "strength": strength}
        return build_table(schedule, prediction, sampler, steps, **more)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        if self.shape is not None:
            channels, height, width = self.shape
            return channels, height, width
        size = self.arguments.get("image_size", 32)
        return self.arguments.get("image_channels", 3), size, size

    @property
    def default_sampling(self) -> dict[str, Any]:
        """How the service and the evaluation sample by default."""
        return DEFAULT_SAMPLING | self.sampling

    def steps_of(self, sampler: str) -> int:
        """Default steps. Those of the checkpoint fit its own sampler only: one step of ddim would be a blur."""
        own = self.default_sampling
        return own["steps"] if sampler == own["sampler"] else FEW if sampler in JUMPING else USUAL

    @property
    def named_sampling(self) -> dict[str, dict[str, Any]]:
        """By QUALITIES. A checkpoint that has no draft or best samples them as by default."""
        return {name: self.default_sampling | self.qualities.get(name, {}) for name in QUALITIES}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def build_model(config: ModelConfig, architecture: str | None = None) -> nn.Module:
    """The network with fresh weights.

    Args:
        architecture: `package.module:Class` given by the operator; overrides the config's own.

    Raises:
        CheckpointError: unknown architecture or arguments that do not fit it.
    """
    name = architecture or config.architecture
    cls = _import_architecture(name) if architecture and ":" in name else ARCHITECTURES.get(name)
    if cls is None:
        raise CheckpointError(
            f"unknown architecture {name!r}: use one of {', '.join(ARCHITECTURES)}, or give package.module:Class "
            "as --architecture, or as architecture in DIFFUSION_MODELS"
        )
    arguments = dict(config.arguments)
    if "num_classes" in inspect.signature(cls).parameters:
        arguments.setdefault("num_classes", config.num_classes)
    try:
        model = cls(**arguments)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"architecture {name!r} refuses its arguments: {error}") from error
    known = getattr(model, "num_classes", config.num_classes)
    if known != config.num_classes:
        raise CheckpointError(f"{config.num_classes} class_names for a model of {known} classes")
    return model


def save_checkpoint(folder: Path, model: nn.Module, config: ModelConfig) -> None:
    """Write weights in float16, whose 10 bits of mantissa keep trained weights better than bfloat16's 7.

    Each file is replaced as a whole, the weights before the config that knows their SHA-256: a process killed in
    between leaves a folder that is refused, never one that is wrong.

    Raises:
        CheckpointError: a weight beyond float16's range.
    """
    weights = half_weights(model)
    folder.mkdir(parents=True, exist_ok=True)
    content = save(weights)  # written by hand below: save_file makes files that only their owner may read
    facts = asdict(config) | {"sha256": hashlib.sha256(content).hexdigest()}
    replace_file(folder / WEIGHTS, content)
    replace_file(folder / CONFIG, (json.dumps(facts, indent=2) + "\n").encode())


def half_weights(model: nn.Module) -> dict[str, Tensor]:
    """Raises CheckpointError: a weight beyond float16's range."""
    weights = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise CheckpointError("a weight is not finite in float16")
    return weights


def load_config(folder: Path) -> ModelConfig:
    """Read config.json.

    Raises:
        CheckpointError: the file is missing, is no JSON, or holds unknown or impossible fields.
    """
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text("utf-8-sig"))  # UTF-8 in any locale; editors on Windows add a mark
        return ModelConfig(**values)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_checkpoint(folder: Path, architecture: str | None = None) -> tuple[nn.Module, ModelConfig]:
    """The network in float32 and evaluation mode, and its config with the hash of the weights.

    Raises:
        CheckpointError: a missing, truncated or altered file, or weights of another architecture.
    """
    config, path = load_config(folder), folder / WEIGHTS
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise CheckpointError(f"{path} {why}") from error
    if config.sha256 not in ("", sha256):
        raise CheckpointError(f"{path} is truncated or altered: its SHA-256 is not the one in {CONFIG}")
    try:
        model = build_model(config, architecture)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    try:
        weights = unwrap(load_file(path), model.state_dict())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    if wrong := misfit(weights, model.state_dict()):
        raise CheckpointError(f"{path} does not hold the weights that {CONFIG} describes: {wrong}")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise CheckpointError(f"{path} holds a weight that is not finite")
    return model.eval().requires_grad_(False), replace(config, sha256=sha256)


def unwrap(weights: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the prefixes of WRAPPERS that all their names have and the model's own do not."""
    for prefix in WRAPPERS:
        wrapped = bool(weights) and all(name.startswith(prefix) for name in weights)
        if wrapped and not any(name.startswith(prefix) for name in expected):
            return unwrap({name.removeprefix(prefix): tensor for name, tensor in weights.items()}, expected)
    return weights


def misfit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Which weights do not fit the model, in one sentence; empty if all fit."""
    shapes = [
        f"{name} {list(weights[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    found = {
        "it lacks": [name for name in expected if name not in weights],
        "it has unknown": [name for name in weights if name not in expected],
        "it has other sizes:": shapes,
    }
    return "; ".join(f"{what} {_some(names)}" for what, names in found.items() if names)


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _import_architecture(path: str) -> type[nn.Module]:
    module, _, name = path.partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CheckpointError(f"cannot import architecture {path!r}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise CheckpointError(f"architecture {path!r} is not a torch.nn.Module class")
    return cls


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
