"""The helpers that compile kernels at a start."""

import json
import os
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoint import ModelConfig
from service.engine import compiling
from service.engine.runner import ModelRunner
from tests.service.engine.tiny import CPU, tiny_config, tiny_model


def test_every_row_count_has_one_helper() -> None:
    counts = [1, 2, 3, 4, 6, 8]
    shared = compiling.shares(counts, 4)
    assert sorted(sum(shared, [])) == counts
    assert [share[0] for share in shared] == [8, 6, 4, 3]
    assert compiling.shares([1], 4) == [[1]]


def test_a_helper_runs_its_counts() -> None:
    config = tiny_config()
    arguments = [config.architecture, json.dumps(config.arguments), "float32", "cpu", "3", "1"]
    command = [sys.executable, "-m", "service.engine.compiling", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("room", "gigabytes", "expected"),
    [
        (20, 60, [["4"], ["3"], ["2"], ["1"]] * 2),
        (3, 60, [["4", "2"], ["3", "1"], ["4", "3", "2", "1"]]),
        (1, 60, [["4", "3", "2", "1"]]),
        (0, 60, []),
        (20, 8, []),
    ],
)
def test_helpers_share_what_room_there_is(
    room: int, gigabytes: int, expected: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    class Ended:
        def __init__(self, command: list[str], **_: object):
            started.append(command)

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(compiling, "room_for_helpers", lambda: room)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (gigabytes << 30, 80 << 30))
    monkeypatch.setattr(subprocess, "Popen", Ended)
    networks = [ModelConfig("dit", {}), ModelConfig("unet", {"base_channels": 32})]
    compiling.compile_ahead(networks, torch.bfloat16, [1, 2, 3, 4])
    assert [command[5:7] for command in started] == [["bfloat16", "cuda"]] * len(expected)
    assert [command[7:] for command in started] == expected
    compiling.compile_ahead([], torch.bfloat16, [1])
    assert len(started) == len(expected)


def test_the_engine_waits_for_its_helpers_and_lives_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, calls = threading.Event(), count(1)

    class Compiling:
        def __init__(self, command: list[str], **_: object):
            pass

        def wait(self) -> None:
            ended.wait()

    monkeypatch.setattr(subprocess, "Popen", Compiling)
    helpers = compiling.Helpers()
    helpers.start([])
    helpers.wait(lambda: ended.set() if next(calls) == 3 else None)
    assert ended.is_set()
    ended.clear()
    helpers.start([])
    monkeypatch.setattr(compiling, "LONGEST_SECONDS", 0.0)
    helpers.wait(lambda: None)  # one that hangs
    ended.set()


def test_steps_are_timed_when_all_are_prepared_and_the_device_is_quiet() -> None:
    seen = list[Any]()

    class Watching(ModelRunner):
        def prepare(self, rows: int) -> None:
            seen.append(("prepared", rows))

        def _time_step(self, rows: int) -> float:
            seen.append(("timed", rows))
            return 1.0

    runner = Watching(tiny_model(), tiny_config(), CPU, torch.float32, 2)
    runner.wait_for_quiet = lambda on_progress: seen.append("quiet")
    runner.warm_up(2)
    assert seen == [("prepared", 2), ("prepared", 1), "quiet", ("timed", 2), ("timed", 1)]


@pytest.mark.parametrize(
    ("cores", "quota", "limit", "used", "expected"),
    [
        (64, "max 100000", "max", 0, 32),
        (64, "400000 100000", "max", 0, 2),  # a container of four cores on a large machine
        (64, "max 100000", str(8 << 30), 3 << 30, 2),  # 5 GiB are left
        (64, "50000 100000", "max", 0, 0),
        (64, "max 100000", str(1 << 30), 2 << 30, 0),
        (4, None, None, 0, 2),  # no cgroup
    ],
)
def test_a_container_has_room_for_what_it_may_use(
    cores: int,
    quota: str | None,
    limit: str | None,
    used: int,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    (tmp_path / "meminfo").write_text(f"MemAvailable: {100 << 20} kB\n")
    if quota is not None and limit is not None:
        for name, text in (("cpu.max", quota), ("memory.max", limit), ("memory.current", str(used))):
            (tmp_path / name).write_text(f"{text}\n")
    assert compiling.room_for_helpers(tmp_path, tmp_path / "meminfo") == expected


def test_a_helper_ends_with_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    parents = iter([7, 7, 1, 1])  # the engine dies after the first row count
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    monkeypatch.setattr(compiling.ModelRunner, "rehearsal", lambda _, rows: ran.append(rows))
    monkeypatch.setattr(compiling.ModelRunner, "execute", lambda *_: None)
    config = tiny_config()
    compiling.main([config.architecture, json.dumps(config.arguments), "float32", "cpu", "3", "2", "1"])
    assert ran == [3]
