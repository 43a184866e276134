"""The resumable state of a training run: one safetensors file, replaced atomically.

There is no random state in it: every random number of step k is drawn from (seed, k), so a run that continues at
step k draws what an uninterrupted run would have drawn. The recipe is in it, so that no run continues another one.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from training.ema import EMA

STATE = "state.safetensors"


class StateError(ValueError):
    """A state that cannot be resumed."""


def save_state(
    folder: Path,
    model: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    seconds: float,
    recipe: dict[str, Any],
) -> None:
    """step: optimizer steps done; seconds: spent in training so far; recipe: what the run depends on, for JSON."""
    tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in values.items()}
    temporary = folder / (STATE + ".tmp")
    contiguous = {k: v.detach().contiguous() for k, v in tensors.items()}
    metadata = {"step": str(step), "seconds": repr(seconds), "recipe": json.dumps(recipe)}
    save_file(contiguous, temporary, metadata)
    os.replace(temporary, folder / STATE)


def load_state(
    folder: Path, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, recipe: dict[str, Any]
) -> tuple[int, float]:
    """Restore all three in place; returns (step, seconds), (0, 0.0) where there is no state.

    Raises:
        StateError: the file is damaged, or its run had another recipe; the message names the first difference.
    """
    path = folder / STATE
    if not path.exists():
        return 0, 0.0
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            metadata = file.metadata() or {}
        step, seconds = int(metadata["step"]), float(metadata["seconds"])
        known = json.loads(metadata.get("recipe", "{}"))
        if difference := first_difference(known, recipe):
            raise StateError(
                f"{path} belongs to another run: {difference}. Choose another --out, or delete {folder}"
            )
        model.load_state_dict(_under("model.", tensors))
        ema.model.load_state_dict(_under("ema.", tensors))
    except StateError:
        raise
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        raise StateError(f"{path} cannot be resumed: {error}. Choose another --out, or delete it") from error
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _under("optimizer.", tensors).items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step, seconds


def first_difference(known: dict[str, Any], now: dict[str, Any]) -> str:
    """Where two recipes part, in one phrase; empty where they do not."""
    for name in [*now, *sorted(known.keys() - now.keys())]:
        was = json.dumps(known[name], sort_keys=True) if name in known else "not recorded"
        new = json.dumps(now[name], sort_keys=True) if name in now else "unknown"
        if was != new:
            return f"{name} was {was}, now {new}"
    return ""


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
