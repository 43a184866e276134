"""CPU time and memory of a process and of what it started."""

import os
import subprocess
import sys
import time

import pytest

from benchmarks import process_tree

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")

BURN = "import time\nwhile time.process_time() < 0.3: pass"
# burns by itself, by a child that has ended, and by a child's child that runs on
PARENT = f"""
import subprocess, sys, time
subprocess.run([sys.executable, "-c", {BURN!r}], check=True)
inner = {BURN + chr(10) + "print('burnt', flush=True)" + chr(10) + "input()"!r}
outer = "import subprocess, sys; subprocess.run([sys.executable, '-c', " + repr(inner) + "])"
child = subprocess.Popen([sys.executable, "-c", outer], stdin=sys.stdin)
{BURN}
print("burnt", flush=True)
child.wait()
"""


def test_ended_and_running_processes_are_counted() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin
        assert parent.stdout
        assert [parent.stdout.readline() for _ in range(2)] == ["burnt\n"] * 2  # the two that run on
        family = process_tree.tree(parent.pid)
        assert len(family) == 3
        assert family[0] == parent.pid
        assert process_tree.cpu_seconds(parent.pid) >= 0.85  # 0.9 but for the ticks
        burnt = process_tree.cpu_seconds_of_module(parent.pid, BURN)
        assert burnt >= 0.56  # the two that run on; the one between them only waits
        assert process_tree.cpu_seconds_of_module(parent.pid, "no.such.module") == 0.0
        assert process_tree.machine_cpu_seconds() > process_tree.cpu_seconds(parent.pid)
        assert process_tree.status_sum(parent.pid, "Threads") >= 3
        assert process_tree.open_files(parent.pid) >= 9
        resident = process_tree.status_sum(parent.pid, "VmRSS") / 1024
        assert resident / 3 < process_tree.memory_mib(parent.pid) < resident  # three times the same interpreter
        parent.stdin.write("\n")
        parent.stdin.flush()
    assert process_tree.cpu_seconds(parent.pid) == 0.0  # nobody is left


def test_the_time_of_a_process_is_what_it_says_itself() -> None:
    before = process_tree.cpu_seconds(os.getpid())
    started = time.process_time()
    while time.process_time() - started < 0.2:
        pass
    assert process_tree.cpu_seconds(os.getpid()) - before >= 0.18


def test_a_process_with_any_name_is_counted() -> None:
    """Linux cuts a name after 15 bytes, also in the middle of a character."""
    program = "open('/proc/self/comm', 'wb').write(b'\\xc3'); print(flush=True); input()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as named:
        assert named.stdout
        named.stdout.readline()
        assert process_tree.tree(named.pid) == [named.pid]
        assert process_tree.cpu_seconds(named.pid) > 0
        named.communicate("\n")


def test_a_process_that_ends_meanwhile_has_no_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    monkeypatch.setattr(process_tree, "tree", lambda pid: [pid, ended.pid])
    assert process_tree.open_files(os.getpid()) > 0
