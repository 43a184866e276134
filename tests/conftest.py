"""Fixtures that more than one package's tests need."""

from pathlib import Path

import pytest
import torch

from tests.checkpoints import TINY, write_checkpoint


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu run where there is one, and say so where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint of each architecture."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for architecture in TINY:
        write_checkpoint(folder / architecture, architecture)
    return folder
