"""From settings to loaded models."""

from pathlib import Path

import torch

from models.checkpoint import CONFIG, CheckpointError, ModelConfig, build_model, load_checkpoint
from service.engine.runner import ModelRunner
from service.settings import ModelEntry, Settings, SettingsError

MAX_ROWS = {"cpu": 16, "cuda": 128}  # row counts that warm-up tries when the operator sets no cap


def load_runners(settings: Settings) -> dict[str, ModelRunner]:
    """A runner for every model, by name.

    Raises:
        SettingsError: nothing to serve, or a device that is not there.
        CheckpointError: a broken checkpoint, named.
    """
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    slots = settings.max_rows or MAX_ROWS[device.type]
    runners = {}
    for name, entry in model_entries(settings).items():
        model, config = _load(name, entry)
        runners[name] = ModelRunner(model, config, device, dtype, slots)
    return runners


def model_entries(settings: Settings) -> dict[str, ModelEntry]:
    """The models that are configured, or else every checkpoint in the checkpoints folder."""
    if settings.models:
        return settings.models
    folders = sorted(path.parent for path in settings.checkpoints.glob(f"*/{CONFIG}"))
    if not folders:
        raise SettingsError(
            f"no checkpoint in {settings.checkpoints}: a folder with {CONFIG} is needed for each model, or set "
            "DIFFUSION_MODELS or DIFFUSION_CHECKPOINTS"
        )
    return {folder.name: ModelEntry(checkpoint=folder) for folder in folders}


def _load(name: str, entry: ModelEntry) -> tuple[torch.nn.Module, ModelConfig]:
    try:
        if entry.checkpoint is not None:
            return load_checkpoint(Path(entry.checkpoint), entry.architecture)
        config = ModelConfig(**{"architecture": "", "arguments": {}} | (entry.config or {}))
        return build_model(config, entry.architecture).eval().requires_grad_(False), config
    except (CheckpointError, TypeError, ValueError) as error:
        raise CheckpointError(f"model {name}: {error}") from error


def choose_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("DIFFUSION_DEVICE is cuda, but torch finds no CUDA device: use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto is bfloat16 where the hardware multiplies it natively: twice as fast there, slower elsewhere."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else torch.float32
