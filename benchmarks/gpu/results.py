"""Records results as lines of JSON, which benchmarks.gpu_report reads."""

import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def record_result(part: str, **facts: Any) -> dict[str, Any]:
    """Print a result and append it to $OUT/results.jsonl at once, so that a part that is killed loses nothing."""
    result = {"part": part, **facts}
    line = json.dumps(result, default=str)
    print(line, flush=True)
    if folder := os.environ.get("OUT"):
        with (Path(folder) / "results.jsonl").open("a") as file:
            file.write(line + "\n")
    return result


@contextmanager
def record_failures(part: str, **facts: Any) -> Iterator[None]:
    """Record an error of the block as a result, and let the next measurement go on.

    Raises:
        torch.AcceleratorError: again, if it is no lack of memory: the device is lost, so nothing can go on.
    """
    try:
        yield
    except Exception as error:
        where = traceback.format_exc()[-1500:]
        record_result("failed", of=part, **facts, error=f"{type(error).__name__}: {error}"[:1500], where=where)
        if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
            raise
