"""CPU time, memory and open files of a process and its descendants, read from /proc. Linux only."""

import os
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
ENDED = (FileNotFoundError, ProcessLookupError)  # what reading raises when the process has just ended
TICKS = os.sysconf("SC_CLK_TCK")  # a second
MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ (\S+ \d+)|^(Rss|Anonymous): +(\d+) kB", re.MULTILINE)


def tree(pid: int) -> list[int]:
    """The process and its living descendants."""
    parents = {int(path.name): _stat(path)[1] for path in PROC.glob("[0-9]*")}
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of the process and its descendants, also of those that have ended."""
    return sum(sum(_stat(PROC / str(process))[11:15]) for process in tree(pid)) / TICKS


def cpu_seconds_of_module(pid: int, module: str) -> float:
    """User and system time of the living processes of the tree whose command line names the module."""
    named = [p for p in map(str, tree(pid)) if module in _read(PROC / p / "cmdline")]
    return sum(sum(_stat(PROC / process)[11:13]) for process in named) / TICKS


def machine_cpu_seconds() -> float:
    """CPU time that all processes of the machine have used, and that its hypervisor gave to other machines."""
    user, nice, system, _idle, _wait, irq, softirq, stolen = map(int, (PROC / "stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + stolen) / TICKS


def status_sum(pid: int, field: str) -> int:
    """A number of /proc/PID/status, summed over the tree."""
    lines = [line for process in tree(pid) for line in _read(PROC / str(process) / "status").splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def memory_mib(pid: int) -> float:
    """Memory of the tree in MiB. Pages of a file that several processes have mapped count once.

    The kernel's proportional size (PSS) is no substitute: it falls when other programs use the same libraries.
    """
    own, files = 0, Counter[str]()
    for process in tree(pid):
        mapped, file = Counter[str](), ""
        for place, field, size in MAPPING.findall(_read(PROC / str(process) / "smaps")):
            file = place or file
            if field == "Rss":
                mapped[file] += int(size)
            elif field == "Anonymous":
                mapped[file] -= int(size)
                own += int(size)
        files |= mapped  # of each file, the largest size in any process
    return (own + files.total()) / 1024


def open_files(pid: int) -> int:
    """Open file descriptors, summed over the tree."""
    found = 0
    for process in tree(pid):
        with suppress(*ENDED):
            found += len(os.listdir(PROC / str(process) / "fd"))
    return found


def _stat(path: Path) -> list[int]:
    """Numbers of /proc/PID/stat behind the name: index 1 is the parent, 11 to 14 are utime, stime, cutime, cstime.

    All are 0 if the process has ended. The state, index 0, is a letter and replaced by 0. The name is in brackets,
    and may hold any character.
    """
    fields = _read(path / "stat").rpartition(")")[2].split()[1:]
    return [0, *map(int, fields)] if fields else [0] * 50


def _read(path: Path) -> str:
    """The text of a file; empty if its process has ended. A name is cut after 15 bytes, also within a character."""
    with suppress(*ENDED):
        return path.read_text(errors="replace")
    return ""
