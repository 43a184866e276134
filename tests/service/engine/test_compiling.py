"""The helpers that compile kernels at a start."""

import json
import os
import subprocess
import sys

import pytest
import torch

from models.checkpoint import ModelConfig
from service.engine import compiling
from tests.service.engine.tiny import tiny_config


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


@pytest.mark.parametrize(("cores", "gigabytes", "expected"), [(16, 60, 4), (4, 60, 2), (2, 60, 0), (16, 8, 0)])
def test_helpers_need_cores_and_memory(
    cores: int, gigabytes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    class Ended:
        def __init__(self, command: list[str], **_: object):
            started.append(command)

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (gigabytes << 30, 80 << 30))
    monkeypatch.setattr(subprocess, "Popen", Ended)
    compiling.compile_ahead(ModelConfig("dit", {}), torch.bfloat16, [1, 2, 3, 4])
    assert len(started) == expected
    assert all(command[1:6] == ["-m", "service.engine.compiling", "dit", "{}", "bfloat16"] for command in started)
