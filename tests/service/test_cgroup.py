"""CPU quotas of containers, read from trees as Docker and Kubernetes make them."""

import math
from pathlib import Path

import pytest

from service.cgroup import cpu_quota, cpu_threads

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
