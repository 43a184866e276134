"""How many CPUs and how much memory a container may use: torch counts those of the machine."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

SELF, ROOT, MEMORY = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"), Path("/proc/meminfo")


def cpu_quota(groups: Path = SELF, root: Path = ROOT) -> float:
    """CPUs that the quotas of this process's control groups allow; infinite without one, and outside of Linux.

    Each line of `groups` is id:controllers:path, with no controllers in version 2. A quota on any folder from the
    path up to the root holds, so the least one counts. A container may see a path of its host that it cannot read;
    its own group is then the root.
    """
    return min(map(_quota, _folders("cpu", groups, root)), default=math.inf)


def free_memory(groups: Path = SELF, root: Path = ROOT, machine: Path = MEMORY) -> float:
    """Bytes that this process may still take, by the machine and by each of its control groups.

    What a group keeps of files counts as free, for the kernel gives it up first. Infinite outside of Linux.
    """
    known = re.search(r"MemAvailable:\s*(\d+) kB", _read(machine))
    free = [1024 * int(known[1])] if known else []
    return min([*free, *map(_free, _folders("memory", groups, root))], default=math.inf)


def _folders(controller: str, groups: Path, root: Path) -> Iterator[Path]:
    """Of the control groups of this process that limit what the controller counts."""
    for line in _read(groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        folder = root / controllers / path.lstrip("/")
        yield from (parent for parent in (folder, *folder.parents) if parent.is_relative_to(root))


def cores(root: Path = ROOT) -> int:
    """CPUs that this process may use, at least 1."""
    counted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cpu_threads(None, counted, cpu_quota(root=root))


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


def _free(folder: Path) -> float:
    """In bytes. Version 2 has "max" for no limit, version 1 a huge number."""
    limits = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
    used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
    if not (limits.strip().isdigit() and used.strip().isdigit()):
        return math.inf
    files = dict(re.findall(r"^(\w*inactive_file) (\d+)$", _read(folder / "memory.stat"), re.MULTILINE))
    return int(limits) - int(used) + int(files.get("total_inactive_file") or files.get("inactive_file", 0))


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:  # not there, or not for us
        return ""
