"""Two versions of one model's weights in an engine, while requests need the one before.

The newest stands under the model's name, the one before under the name with LEAVING behind it. To the policy they
are two models of the same weight.
"""

from service.engine.core import LEAVING, EngineCore
from service.engine.runner import ModelRunner


def key(core: EngineCore, model: str, version: int | None) -> str | None:
    """The key of the runner with that version of a model (None: the newest); None if it has left."""
    if version is None or core.runners[model].version == version:
        return model
    return model + LEAVING if is_leaving(core, model) and core.runners[model + LEAVING].version == version else None


def is_leaving(core: EngineCore, model: str) -> bool:
    """Whether a version before is still there."""
    return model + LEAVING in core.runners


def switch(core: EngineCore, model: str, runner: ModelRunner, version: int) -> None:
    """Give a model another runner of the same network; call between two steps.

    Accepted requests keep the runner and the queue that they have until `leave`.

    Args:
        version: of its weights; that of the runner before if they are the same ones.
    """
    before, old = core.runners[model], core.shares[model]
    core.runners[model + LEAVING], core.shares[model + LEAVING] = before, old
    core.runners[model], runner.version = runner, version
    core.shares[model] = share = core.new_share(model, old.scheduler.max_rows)
    if runner.backend == before.backend:  # else it has measurements of its own
        runner.fixed_rows = before.fixed_rows
        share.slowdown, share.stretch = old.slowdown, old.stretch


def leave(core: EngineCore, model: str) -> bool:
    """Drop the version before; False while requests need it."""
    if core.shares[model + LEAVING].scheduler.requests:
        return False
    del core.runners[model + LEAVING], core.shares[model + LEAVING]
    return True
