"""Shared by the tests of 2D vision."""

from __future__ import annotations

from pathlib import Path

import pytest

from frozenllm.vision2d.toy import write_digits


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's cache stays as it is: toy data goes to a folder of the tests, also in child processes."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("XDG_CACHE_HOME", str(folder))
    yield folder
    patch.undo()


@pytest.fixture(scope="session")
def digits_root(cache_home: Path) -> Path:
    """The toy digits, written once."""
    return write_digits()
