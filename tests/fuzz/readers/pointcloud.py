"""Point clouds as h5, text and pickled arrays."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from registry import finite, reader

from frozenllm.pointcloud.data.modelnet import read_dat, read_text
from frozenllm.pointcloud.data.scanobjectnn import read_h5
from frozenllm.pointcloud.toy import write_modelnet, write_scanobjectnn


@reader("pointcloud: h5")
class H5:
    @staticmethod
    def write(folder: Path) -> Path:
        root = write_scanobjectnn(folder / "scans", train=6, test=3, points=32)
        return next(path for path in sorted(root.rglob("*.h5")) if "training" in path.name)

    @staticmethod
    def read(path: Path) -> Any:
        return read_h5(path)

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        clouds, labels = found
        assert clouds.ndim == 3
        assert clouds.shape[2] == 3
        assert len(clouds) == len(labels) > 0
        assert np.issubdtype(labels.dtype, np.integer)


@reader("pointcloud: text of a shape", "lines")
class ShapeText:
    @staticmethod
    def write(folder: Path) -> Path:
        root = write_modelnet(folder / "shapes", train=4, test=2, points=24)
        listed = (root / "modelnet40_train.txt").read_text().split()[0]
        return root / listed.rsplit("_", 1)[0] / f"{listed}.txt"

    @staticmethod
    def read(path: Path) -> Any:
        return read_text(path.parent.parent, "train", points=16)

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        clouds, labels = found
        assert len(clouds) == len(labels) == len(expected[0])
        finite(clouds)


@reader("pointcloud: .dat of pickled arrays")
class Dat:
    @staticmethod
    def write(folder: Path) -> Path:
        rng = np.random.default_rng(0)
        clouds = [rng.normal(size=(16, 6)).astype(np.float32) for _ in range(3)]
        path = folder / "modelnet40_train_8192pts_fps.dat"
        path.write_bytes(pickle.dumps([clouds, [np.array([i]) for i in range(3)]]))
        return path

    @staticmethod
    def read(path: Path) -> Any:
        return read_dat(path)

    @staticmethod
    def check(found: Any, expected: Any) -> None:
        clouds, labels = found
        assert len(clouds) == len(labels)
        assert all(cloud.ndim == 2 for cloud in clouds)
