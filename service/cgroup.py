"""How many CPUs a container may use: torch counts the machine's, and threads beyond the quota wait in turns."""

import math
import os
from pathlib import Path

SELF, ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cpu_quota(groups: Path = SELF, root: Path = ROOT) -> float:
    """CPUs that the quotas of this process's control groups allow; infinite without one, and outside of Linux.

    Each line of `groups` is id:controllers:path, with no controllers in version 2. A quota on any folder from the
    path up to the root holds, so the least one counts. A container may see a path of its host that it cannot read;
    its own group is then the root.
    """
    quotas = [math.inf]
    for line in _read(groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = root / controllers / path.lstrip("/")
        quotas += [_quota(parent) for parent in (folder, *folder.parents) if parent.is_relative_to(root)]
    return min(quotas)


def cores(root: Path = ROOT) -> int:
    """Those that this process may use."""
    counted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(counted, cpu_quota(root=root))))


def cpu_threads(wanted: int | None, counted: int, quota: float) -> int:
    """Threads to use: what the operator wants, else what torch counted, at most the whole CPUs of the quota."""
    return wanted or max(1, int(min(counted, quota)))


def _quota(folder: Path) -> float:
    """In CPUs. Version 2 has "quota period" or "max period" in one file, version 1 a file for each, -1 for none."""
    text = _read(folder / "cpu.max") or " ".join(
        _read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
    )
    quota, _, period = text.strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:  # not there, or not for us
        return ""
