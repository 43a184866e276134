"""CPU quotas and memory limits of containers, read from trees as Docker and Kubernetes make them."""

import math
from pathlib import Path

import pytest

from service.cgroup import cpu_quota, cpu_threads, free_memory

V1 = "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:cpuset:/docker/abc\n"
POD = "0::/kubepods/pod1/container1\n"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {}, math.inf),
        (POD, {"kubepods/pod1/container1/cpu.max": "150000 100000"}, 1.5),
        (POD, {"kubepods/pod1/cpu.max": "50000 100000", "kubepods/pod1/container1/cpu.max": "max 100000"}, 0.5),
        (POD, {"cpu.max": "300000 100000"}, 3.0),  # the path is the host's, the container sees its own group
        ("0::/../other\n", {"cpu.max": "300000 100000"}, 3.0),
        (
            V1,
            {
                "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "400000",
                "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
            },
            4.0,
        ),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "400000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 4.0),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, math.inf),
        ("0::/\n", {"cpu.max": "what is this"}, math.inf),
        ("0::/\n", {"cpu.max": "100000 0"}, math.inf),
        ("", {"cpu.max": "100000 100000"}, math.inf),  # no Linux: there is no /proc/self/cgroup
    ],
)
def test_the_least_quota_on_the_way_to_the_root_holds(
    groups: str, files: dict[str, str], quota: float, tmp_path: Path
) -> None:
    if groups:
        (tmp_path / "self").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cpu_quota(tmp_path / "self", tmp_path / "fs") == quota


@pytest.mark.parametrize(
    ("wanted", "counted", "quota", "threads"),
    [(None, 64, 2.0, 2), (None, 64, 2.5, 2), (None, 64, 0.5, 1), (None, 4, math.inf, 4), (8, 4, 2.0, 8)],
)
def test_threads_fit_into_the_quota_unless_the_operator_sets_them(
    wanted: int | None, counted: int, quota: float, threads: int
) -> None:
    assert cpu_threads(wanted, counted, quota) == threads


MACHINE = "MemTotal:  8000 kB\nMemFree:  100 kB\nMemAvailable:  4000 kB\n"
ALL = 4000 * 1024


@pytest.mark.parametrize(
    ("groups", "files", "machine", "free"),
    [
        ("0::/\n", {}, MACHINE, ALL),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "5000\n"}, MACHINE, ALL),
        ("0::/\n", {"memory.max": "9000\n", "memory.current": "5000\n"}, MACHINE, 4000),
        (
            "0::/\n",
            {"memory.max": "9000", "memory.current": "8500", "memory.stat": "anon 1\ninactive_file 700\nfile 9\n"},
            MACHINE,
            1200,
        ),
        (POD, {"kubepods/pod1/memory.max": "300", "kubepods/pod1/memory.current": "100"}, MACHINE, 200),
        (
            V1,
            {
                "memory/docker/abc/memory.limit_in_bytes": "900",
                "memory/docker/abc/memory.usage_in_bytes": "500",
                "memory/docker/abc/memory.stat": "inactive_file 1\ntotal_inactive_file 70\n",
            },
            MACHINE,
            470,
        ),
        (V1, {"memory/memory.limit_in_bytes": str(2**62), "memory/memory.usage_in_bytes": "1"}, MACHINE, ALL),
        ("0::/\n", {"memory.max": "what", "memory.current": "is this"}, MACHINE, ALL),
        ("", {}, "", math.inf),  # no Linux
    ],
)
def test_the_least_room_on_the_way_to_the_root_counts(
    groups: str, files: dict[str, str], machine: str, free: float, tmp_path: Path
) -> None:
    for name, text in {"self": groups, "meminfo": machine, **{f"fs/{k}": v for k, v in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path / "self", tmp_path / "fs", tmp_path / "meminfo") == free
