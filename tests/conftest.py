"""Fixtures that more than one package's tests need, and what holds for the whole run."""

import os
from pathlib import Path

import pytest
import torch

from tests import skips
from tests.checkpoints import TINY, write_checkpoint


def pytest_configure() -> None:
    """One thread for torch, here and in every process that a test starts: pytest-xdist has a worker a core."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu run where there is one, and say so where there is none.

    The tests of a file share servers and browsers, so they run on one worker, unless they name another group.
    """
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The last line before the counts says what was skipped and how to get it."""
    places = {report.nodeid: report.longrepr for report in terminalreporter.stats.get("skipped", [])}
    if line := skips.summary([reason for _, _, reason in places.values()]):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint of each architecture."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for architecture in TINY:
        write_checkpoint(folder / architecture, architecture)
    return folder
