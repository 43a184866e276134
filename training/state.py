"""The resumable state of a training run: one safetensors file, replaced atomically, and its predecessor.

It has no random state: the random numbers of step k depend on (seed, k) only, so a resumed run draws the same ones
as an uninterrupted run. It has the recipe, so that a run with another recipe cannot resume from it.
"""

import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from models.files import replace_file
from training.config import LATER
from training.ema import EMA

logger = logging.getLogger(__name__)

MAKES_PICTURES = {"data", "subset", "hold_out", "arguments"}  # options that change train_sha256, beside the files
STATE, PREVIOUS = "state.safetensors", "state.previous.safetensors"


class StateError(ValueError):
    """A state that cannot be resumed."""


@dataclass(frozen=True)
class Progress:
    step: int = 0  # optimizer steps done
    seconds: float = 0.0  # spent in training
    finished_at: tuple[int, ...] = ()  # earlier values of --steps, at which the run had finished


def save_state(
    folder: Path,
    model: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    *,
    progress: Progress,
    recipe: dict[str, Any],
) -> None:
    """Write STATE; the one before is kept as PREVIOUS. recipe: see Trainer.identity, serialisable as JSON."""
    tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in values.items()}
    contiguous = {k: v.detach().contiguous() for k, v in tensors.items()}
    metadata = {"step": str(progress.step), "seconds": repr(progress.seconds), "recipe": json.dumps(recipe)}
    metadata["finished_at"] = json.dumps(progress.finished_at)
    replace_file(folder / STATE, save(contiguous, metadata), keep=folder / PREVIOUS)


def load_state(
    folder: Path, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, recipe: dict[str, Any]
) -> Progress:
    """Restore model, average and optimizer in place; without a state, return a fresh Progress.

    A damaged state gets the suffix .damaged, so that the next save does not keep it in place of a sound one.

    Raises:
        StateError: all states are damaged, or the run had another recipe; the message names every difference.
    """
    damage = []
    for path in (folder / STATE, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            progress = _load(path, model, ema, optimizer, recipe)
        except StateError:
            raise
        except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
            damage.append(f"{path} cannot be resumed: {error}")
            continue
        for sentence in damage:
            logger.warning("%s. Going on from step %d of %s", sentence, progress.step, path.name)
        if damage:
            with suppress(FileNotFoundError):  # another process of this run was faster
                (folder / STATE).replace(folder / f"{STATE}.damaged")
        return progress
    if damage:
        raise StateError(f"{'; '.join(damage)}. Use another folder, or delete {folder}")
    return Progress()


def _load(
    path: Path, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, recipe: dict[str, Any]
) -> Progress:
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
        metadata = file.metadata() or {}
    progress = _progress(metadata)
    known = {k: v for k, v in LATER.items() if k in recipe} | json.loads(metadata.get("recipe", "{}"))
    if is_finished(progress.step, known) and recipe.get("steps", 0) > known["steps"]:
        progress = Progress(progress.step, progress.seconds, (*progress.finished_at, progress.step))
        known["steps"] = recipe["steps"]  # more steps for a finished run are no difference
    if found := differences(known, recipe):
        raise StateError(f"{path} belongs to another run: {found}. Use another folder, or delete {path.parent}")
    model.load_state_dict(_under("model.", tensors))
    ema.model.load_state_dict(_under("ema.", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _under("optimizer.", tensors).items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def _progress(metadata: dict[str, str]) -> Progress:
    finished_at = json.loads(metadata.get("finished_at", "[]"))
    return Progress(int(metadata["step"]), float(metadata["seconds"]), tuple(finished_at))


def is_finished(step: int, recipe: dict[str, Any]) -> bool:
    return step == recipe.get("steps")


def differences(known: dict[str, Any], now: dict[str, Any]) -> str:
    """The differences of two recipes in words; "" if there are none."""
    found = {}
    for name in [*now, *sorted(known.keys() - now.keys())]:
        was = json.dumps(known[name], sort_keys=True) if name in known else "not recorded"
        new = json.dumps(now[name], sort_keys=True) if name in now else "unknown"
        if was != new:
            found[name] = f"{name} was {was}, now {new}"
    if "train_sha256" in found and "train_sha256" in known and not found.keys() & MAKES_PICTURES:
        changed = "the pictures in --data-path have changed since the run began"
        found["train_sha256"] = f"{changed} ({found['train_sha256']})"
    return "; ".join(found.values())


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
