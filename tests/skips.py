"""What a machine may lack, and the line at the end of a run that says what was skipped and how to get it."""

import shutil
from collections import Counter

import pytest

DEBIAN = {
    "chromium": "chromium",
    "curl": "curl",
    "kubectl": "kubernetes-client",
    "libatomic1": "libatomic1",
    "prometheus": "prometheus",
    "shellcheck": "shellcheck",
}
PIP = {"the extra ray": "pip install -e '.[ray]'"}


def needs(tool: str) -> pytest.MarkDecorator:
    """Skip where a tool of DEBIAN is not installed."""
    return pytest.mark.skipif(not shutil.which(tool), reason=f"needs {tool}")


def summary(reasons: list[str]) -> str:
    """One line of how many tests lack what, with the commands that install it; empty if nothing was skipped."""
    counts = Counter(reason.removeprefix("Skipped: ").removeprefix("needs ") for reason in reasons)
    tools = sorted(name for name in counts if name in DEBIAN)
    parts = [f"{counts.pop(name)} need {name}" for name in tools]
    if tools:
        parts[-1] += f" (apt-get install {' '.join(DEBIAN[name] for name in tools)})"
    for name, count in sorted(counts.items()):
        parts.append(f"{count} need {name}" + (f" ({PIP[name]})" if name in PIP else ""))
    return "skipped: " + ", ".join(parts) if parts else ""
