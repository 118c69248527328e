"""Shared by the tests of motion."""

from __future__ import annotations

from pathlib import Path

import pytest

from frozenllm.motion.toy import write_toy_argoverse1, write_toy_argoverse2

TOY = {"train": 12, "val": 6, "test": 3}


@pytest.fixture(scope="session")
def toy2(cache_home: Path) -> Path:
    """Toy traffic as Argoverse 2, written once; not to be changed."""
    return write_toy_argoverse2(**TOY)


@pytest.fixture(scope="session")
def toy1(cache_home: Path) -> Path:
    """Toy traffic as Argoverse 1, written once; not to be changed."""
    return write_toy_argoverse1(**TOY)
