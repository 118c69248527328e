"""Shared by the tests of core."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import transformers
from small_models import make_model, save_model


@pytest.fixture(scope="session")
def model() -> transformers.PreTrainedModel:
    """A small LLaMA; not to be changed."""
    return make_model("llama")


@pytest.fixture(scope="session")
def folder(model: transformers.PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, saved; not to be changed."""
    return save_model(model, tmp_path_factory.mktemp("llama"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the saved model, for tests that change it."""
    return Path(shutil.copytree(folder, tmp_path / "model"))
