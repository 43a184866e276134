"""Another checkpoint for a model that is served, read and checked beside the one that serves."""

from pathlib import Path

import torch

from models.checkpoint import CheckpointError, ModelConfig, load_checkpoint
from models.files import WEIGHTS
from service.backend import choose_backend
from service.cgroup import free_memory
from service.engine.runner import ModelRunner
from service.engine.swaps import Loader
from service.errors import Unavailable
from service.registry import check_defaults, choose_device, choose_dtype
from service.settings import Settings, model_entries

# Memory for a swap, in sizes of the weights' file. For a moment there are the file's float16 weights (1), and in
# float32 the converted ones (2) and the network's own (2).
HOST_COPIES = 5
SAME = ("architecture", "arguments", "class_names", "image_shape")


def successors(settings: Settings) -> Loader:
    """What makes another runner for a model of these settings. It raises CheckpointError or ServiceError."""
    architectures = {name: entry.architecture for name, entry in model_entries(settings).items()}
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    backend = choose_backend(settings.backend, device, dtype, settings.dtype == "int8")

    def load(name: str, folder: str, runner: ModelRunner) -> ModelRunner:
        check_memory(Path(folder) / WEIGHTS, runner)
        model, config = load_checkpoint(Path(folder), architectures.get(name))
        check_same(runner.config, config)
        check_defaults(name, config, settings)
        new = runner.successor(model, config)
        if backend is None or new.backend != "torch":
            return new
        return backend.serve(name, new, Path(folder), architectures.get(name))

    return load


def check_same(old: ModelConfig, new: ModelConfig) -> None:
    """The same network, because its measured times and compiled kernels are kept, and the same classes and sizes,
    because clients have looked them up.

    Raises:
        CheckpointError: which of them differs.
    """
    if not_same := [name for name in SAME if getattr(old, name) != getattr(new, name)]:
        raise CheckpointError(f"its {' and '.join(not_same)} must be those of the model that is served")


def check_memory(weights: Path, runner: ModelRunner) -> None:
    """Whether a second copy fits beside the first one.

    Raises:
        Unavailable: how much is missing.
    """
    size = weights.stat().st_size if weights.is_file() else 0
    _check_room("the memory", HOST_COPIES * size, free_memory())
    if runner.device.type == "cuda":
        size = sum(t.nbytes for t in (*runner.model.parameters(), *runner.model.buffers()))
        needed = size + 4 * runner.pool.x.nbytes  # x, history, and images and noise of requests that bring some
        _check_room("the memory of the GPU", needed, torch.cuda.mem_get_info(runner.device)[0])


def _check_room(what: str, needed: float, free: float) -> None:
    if needed > free:
        text = f"a second copy of the model needs {needed / 2**20:.0f} MiB, and {what} has {free / 2**20:.0f} free"
        raise Unavailable.because(text)
