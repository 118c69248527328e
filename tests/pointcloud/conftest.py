"""Shared by the tests of point clouds."""

from __future__ import annotations

from pathlib import Path

import pytest

from frozenllm.pointcloud.toy import write_modelnet, write_scanobjectnn


@pytest.fixture(scope="session")
def scans_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few toy scans in ScanObjectNN's layout."""
    return write_scanobjectnn(tmp_path_factory.mktemp("toy") / "scans", train=80, test=24, points=80)


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few toy shapes in ModelNet40's layout."""
    return write_modelnet(tmp_path_factory.mktemp("toy") / "shapes", train=40, test=16, points=80)


@pytest.fixture(scope="session")
def uncompiled_mmdet3d() -> None:
    """mmdet3d's data sets and metrics, their numba functions as plain Python: compiling takes half a minute."""
    pytest.importorskip("mmdet3d", reason="needs the extra [mmdet3d]")
    pytest.importorskip("mmcv.ops", reason="needs mmcv built with its operators")
    import numba

    before, numba.config.DISABLE_JIT = numba.config.DISABLE_JIT, True  # numba reads it when a module is imported
    try:
        import mmdet3d.datasets
        import mmdet3d.evaluation  # noqa: F401
    finally:
        numba.config.DISABLE_JIT = before
