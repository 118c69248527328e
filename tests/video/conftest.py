"""Shared by the tests of video."""

from __future__ import annotations

from pathlib import Path

import pytest

from frozenllm.video.toy import write_toy_frames, write_toy_videos


@pytest.fixture(scope="session")
def toy_frames_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few moving digits as frame folders, in the default size; not to be changed."""
    return write_toy_frames(tmp_path_factory.mktemp("toy") / "frames", train_videos=24, val_videos=8)


@pytest.fixture(scope="session")
def toy_videos_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same digits as mp4; not to be changed."""
    return write_toy_videos(tmp_path_factory.mktemp("toy") / "videos", train_videos=24, val_videos=8)
