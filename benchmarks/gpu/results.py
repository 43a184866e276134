"""Results as lines of JSON, for benchmarks.gpu_report."""

import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def note(part: str, **facts: Any) -> dict[str, Any]:
    """Print a result, and add it to $OUT/results.jsonl at once: a part that is ended early loses nothing."""
    result = {"part": part, **facts}
    line = json.dumps(result, default=str)
    print(line, flush=True)
    if folder := os.environ.get("OUT"):
        with (Path(folder) / "results.jsonl").open("a") as file:
            file.write(line + "\n")
    return result


@contextmanager
def guarded(part: str, **facts: Any) -> Iterator[None]:
    """An error is a result, too, and the next measurement goes on; but not on a device that is lost."""
    try:
        yield
    except Exception as error:
        where = traceback.format_exc()[-1500:]
        note("failed", of=part, **facts, error=f"{type(error).__name__}: {error}"[:1500], where=where)
        if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
            raise
