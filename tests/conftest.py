"""Fixtures that more than one package's tests need."""

from pathlib import Path

import pytest

from tests.checkpoints import TINY, write_checkpoint


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint of each architecture."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for architecture in TINY:
        write_checkpoint(folder / architecture, architecture)
    return folder
