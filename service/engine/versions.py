"""Two versions of one model's weights in an engine, while requests need the one before.

The newest stands under the model's name, the one before under the name with LEAVING behind it. To the policy they
are two models of the same weight.
"""

from service.engine.core import LEAVING, EngineCore
from service.engine.runner import ModelRunner


def key(core: EngineCore, model: str, version: int | None) -> str | None:
    """The key of the runner with that version of a model (None: the newest); None if it has left."""
    if version is None or core.versions[model] == version:
        return model
    return model + LEAVING if core.versions.get(model + LEAVING) == version else None


def switch(core: EngineCore, model: str, runner: ModelRunner, version: int) -> None:
    """Give a model another runner of the same network; call between two steps.

    Accepted requests keep the runner and the queue that they have until `leave`.

    Args:
        version: of its weights; that of the runner before if they are the same ones.
    """
    old = core.shares[model]
    leaving = model + LEAVING
    core.runners[leaving], core.shares[leaving], core.versions[leaving] = (
        core.runners[model], old, core.versions[model],
    )  # fmt: skip
    is_alike = runner.backend == core.runners[model].backend
    if is_alike:  # else it has measurements of its own
        runner.fixed_rows = core.runners[model].fixed_rows
    core.runners[model], core.versions[model] = runner, version
    core.shares[model] = share = core.new_share(model, old.scheduler.max_rows)
    if is_alike:
        share.slowdown, share.stretch = old.slowdown, old.stretch


def leave(core: EngineCore, model: str) -> bool:
    """Drop the version before; False while requests need it."""
    if core.shares[model + LEAVING].scheduler.requests:
        return False
    for by_model in (core.runners, core.shares, core.versions):
        del by_model[model + LEAVING]
    return True
