"""Stepwise as a package: sample a checkpoint in this process, or a running service; and the command `stepwise`.

    import stepwise

    model = stepwise.load("checkpoints/dit")
    images = model.sample("3", n=4, seed=1)  # four pictures of PIL

    remote = stepwise.connect("http://localhost:8000", "dit")
    images = remote.sample("3", n=4, seed=1)  # the same ones, up to rounding

Both take the fields of POST /generate (docs/api.md), and raise the same errors (service/errors.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from run import main, version

if TYPE_CHECKING:  # the command must not load torch where it needs none
    from service.loaded_model import Model
    from service.remote_model import RemoteModel

__all__ = ["__version__", "connect", "load", "main"]
__version__ = version()


def load(checkpoint: str | Path, device: str = "auto", dtype: str = "auto") -> "Model":
    """A checkpoint, in this process.

    Args:
        checkpoint: a folder, or the name of a shipped one: dit, unet.
        device: auto, cpu, cuda. dtype: auto, float32, bfloat16, float16.

    Raises:
        ValueError: there is no such device or dtype.
        models.checkpoint.CheckpointError: it cannot be used, and why.
    """
    from models.checkpoint import load_checkpoint
    from models.files import CONFIG
    from service.loaded_model import Model
    from service.registry import choose_device, choose_dtype
    from service.settings import Settings
    from training.checkpoints import find_checkpoint

    for name, given in (("device", device), ("dtype", dtype)):
        allowed = [value for value in get_args(Settings.model_fields[name].annotation) if value != "int8"]
        if given not in allowed:
            raise ValueError(f"{name}: must be one of {', '.join(allowed)}, not {given!r}")
    folder = Path(checkpoint)
    if not (folder / CONFIG).exists():
        folder = find_checkpoint(str(folder))
    place = choose_device(device, "device")
    network, config = load_checkpoint(folder)
    return Model(folder.name, network.to(place, choose_dtype(dtype, place)).eval(), config, place, __version__)


def connect(url: str, model: str, key: str = "", patience: float = 60.0) -> "RemoteModel":
    """A model of a running service.

    Args:
        key: of the service's API, if it has keys.
        patience: seconds; while the service is busy, a request comes again when it says, and in all no later.

    Raises:
        ImportError: without httpx, which the extra `client` brings.
        service.errors.ServiceError, httpx.HTTPError: it does not know the model, or does not answer.
    """
    from service.remote_model import RemoteModel

    return RemoteModel(url, model, key, patience)
