"""Shared by the tests of vision and language: small toy data and encoders, written once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from frozenllm.vqa.toy import write_encoders, write_flickr, write_rooms, write_vqa


@pytest.fixture(scope="session")
def vqa_root(cache_home: Path) -> Path:
    """Toy questions in VQAv2's files."""
    return write_vqa(cache_home / "vqa", train=120, val=40, test=6)


@pytest.fixture(scope="session")
def flickr_root(cache_home: Path) -> Path:
    """Toy captions in Flickr30k's files."""
    return write_flickr(cache_home / "flickr", train=24, val=6, test=8)


@pytest.fixture(scope="session")
def scenes_extra() -> None:
    """Skips without the extra ``[scenes]``."""
    if any(importlib.util.find_spec(name) is None for name in ("frozenllm.pointcloud", "mmdet3d", "plyfile")):
        pytest.skip("needs the extra [scenes]")


@pytest.fixture(scope="session")
def rooms_root(cache_home: Path, scenes_extra: None) -> Path:
    """Toy rooms in SQA3D's and ScanNet's files, and prepared."""
    return write_rooms(cache_home / "rooms", train=8, val=4, test=2, per_room=24)


@pytest.fixture(scope="session")
def tiny_rooms() -> list[str]:
    """Overrides that make any run on toy rooms tiny."""
    return [
        "model.width=16",
        "model.heads=2",
        "model.pool_out=16",
        "data.num_points=96",
        "data.batch_size=16",
        "data.val_batch_size=64",
        "runtime.console=false",
        "runtime.plots=false",
        "runtime.device=cpu",
        "runtime.workers=0",
        "runtime.precision=fp32",
    ]


@pytest.fixture(scope="session")
def encoders(cache_home: Path) -> Path:
    """Encoders of width 32."""
    return write_encoders(cache_home / "encoders", width=32)


@pytest.fixture(scope="session")
def tiny(encoders: Path) -> list[str]:
    """Overrides that make any model tiny."""
    return [
        f"model.image_encoder={encoders}/clip",
        f"model.text_encoder={encoders}/roberta",
        "model.width=32",
        "model.heads=2",
        "model.layers=1",
        "runtime.console=false",
        "runtime.device=cpu",
        "runtime.workers=0",
        "runtime.precision=fp32",
    ]
