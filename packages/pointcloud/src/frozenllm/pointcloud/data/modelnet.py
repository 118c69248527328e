"""ModelNet40: points on the surfaces of CAD models, in 40 classes, as text files or as the pickle made from them.

``<root>`` is ``modelnet40_normal_resampled``: ``modelnet40_shape_names.txt``, ``modelnet40_{train,test}.txt``, and per
class text files with a line ``x,y,z,nx,ny,nz`` for each of 10,000 points. Point-BERT and the official code thin them to
8192 points once and keep ``modelnet40_{train,test}_8192pts_fps.dat``: a pickle of two lists, of clouds (8192, 6) and of
classes (1,).
"""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from frozenllm.core.whole_files import whole_file
from frozenllm.pointcloud.data.arrays import load_arrays
from frozenllm.pointcloud.data.clouds import PointClouds
from frozenllm.pointcloud.ops import farthest_point_sample

__all__ = ["modelnet40", "read_dat", "read_text"]

_logger = logging.getLogger(__name__)

_BATCH = 32  # clouds thinned at a time


def modelnet40(
    root: str | None, split: str, *, num_classes: int = 40, points: int = 8192, cache: bool = True, **options: Any
) -> PointClouds:
    """One split. Clouds are moved to their mean and scaled into the unit sphere; normals are dropped.

    The pickle is read where it is there. Else the text files are, thinned to ``points`` by farthest point sampling from
    their first point on (the official code starts at a random one), and kept as that pickle: minutes, once.

    Args:
        root: The folder.
        split: ``"train"`` or ``"test"``.
        num_classes: Upper bound of the classes.
        points: Points of a cloud, as in the pickle's name.
        cache: Whether to keep the pickle.
        **options: Of `PointClouds`: ``part``, ``share``, ``split_seed``, ``train``, ``on_error``.

    Raises:
        ValueError: A file is missing or damaged, or a name is unknown.
    """
    if root is None:
        raise ValueError(
            "ModelNet40 is not there yet: give its folder with data.root=/path/to/modelnet40_normal_resampled."
        )
    if split not in ("train", "test"):
        raise ValueError(f"A split of ModelNet40 is train or test, not {split!r}.")
    path = Path(root) / f"modelnet40_{split}_{points}pts_fps.dat"
    if path.is_file():
        clouds, labels = read_dat(path)
    else:
        clouds, labels = read_text(root, split, points)
        if cache:
            _keep(path, clouds, labels)
    clouds = [np.ascontiguousarray(cloud[:, :3], dtype=np.float32) for cloud in clouds]
    return PointClouds(clouds, labels, where=str(path), num_classes=num_classes, normalize=True, **options)


def read_dat(path: str | os.PathLike[str]) -> tuple[list[np.ndarray], np.ndarray]:
    """Clouds ``(N, 3)`` or ``(N, 6)`` and classes of the pickle that Point-BERT keeps; nothing in it is run.

    Raises:
        ValueError: The file is missing or damaged, names anything else than numpy arrays, or holds other arrays.
    """
    content = load_arrays(path)
    if (
        not isinstance(content, (list, tuple))
        or len(content) != 2
        or not all(isinstance(p, (list, tuple)) for p in content)
    ):
        raise ValueError(f"{path}: must hold two lists, of clouds and of classes, as Point-BERT writes them.")
    clouds, classes = content
    labels = []
    for index, (cloud, label) in enumerate(zip(clouds, classes, strict=False)):
        if (
            not isinstance(cloud, np.ndarray)
            or cloud.ndim != 2
            or cloud.shape[1] not in (3, 6)
            or cloud.dtype.kind != "f"
        ):
            found = f"{cloud.dtype} {cloud.shape}" if isinstance(cloud, np.ndarray) else type(cloud).__name__
            raise ValueError(f"{path}: cloud {index} must be numbers of shape (points, 3 or 6), not {found}.")
        label = np.asarray(label)
        if label.size != 1 or label.dtype.kind not in "iu":
            raise ValueError(f"{path}: the class of cloud {index} must be one whole number.")
        labels.append(int(label.reshape(())) if label.ndim == 0 else int(label.ravel()[0]))
    if len(clouds) != len(classes):
        raise ValueError(f"{path}: holds {len(clouds)} clouds, but {len(classes)} classes.")
    return list(clouds), np.array(labels, dtype=np.int64)


def read_text(root: str | os.PathLike[str], split: str, points: int = 8192) -> tuple[list[np.ndarray], np.ndarray]:
    """Clouds and classes of the text files, thinned to ``points``.

    Raises:
        ValueError: A list or a file is missing, names an unknown class, or cannot be read.
    """
    root = Path(root)
    names = _lines(root / "modelnet40_shape_names.txt")
    classes = {name: index for index, name in enumerate(names)}
    shapes = _lines(root / f"modelnet40_{split}.txt")
    clouds, labels = [], []
    for shape in tqdm(shapes, desc=f"ModelNet40 {split}: reading", disable=len(shapes) < 200):
        name = shape.rpartition("_")[0]
        if name not in classes:
            raise ValueError(f"{root}/modelnet40_{split}.txt: {shape} is of no class in modelnet40_shape_names.txt.")
        clouds.append(_read_cloud(root / name / f"{shape}.txt", points))
        labels.append(classes[name])
    return _thinned(clouds, points, split), np.array(labels, dtype=np.int64)


def _lines(path: Path) -> list[str]:
    try:
        found = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: ModelNet40 is the folder modelnet40_normal_resampled.") from error
    if not found:
        raise ValueError(f"{path} is empty.")
    return found


def _read_cloud(path: Path, points: int) -> np.ndarray:
    try:
        cloud = np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2)
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0][:120]
        raise ValueError(f"{path}: cannot be read as lines of x,y,z,nx,ny,nz ({said}).") from error
    if cloud.shape[1] not in (3, 6):
        raise ValueError(f"{path}: has {cloud.shape[1]} numbers a line, not 3 or 6.")
    if len(cloud) < points:
        raise ValueError(f"{path}: has {len(cloud)} points, fewer than the {points} that were asked for.")
    if not np.isfinite(cloud).all():
        raise ValueError(f"{path}: has coordinates that are not finite.")
    return cloud


def _thinned(clouds: list[np.ndarray], points: int, split: str) -> list[np.ndarray]:
    """Every cloud with more points thinned; clouds of one size go together."""
    by_size: dict[int, list[int]] = {}
    for index, cloud in enumerate(clouds):
        if len(cloud) > points:
            by_size.setdefault(len(cloud), []).append(index)
    batches = [ids[i : i + _BATCH] for ids in by_size.values() for i in range(0, len(ids), _BATCH)]
    for batch in tqdm(batches, desc=f"ModelNet40 {split}: thinning to {points} points", disable=len(batches) < 4):
        xyz = torch.from_numpy(np.stack([clouds[i][:, :3] for i in batch]))
        for index, keep in zip(batch, farthest_point_sample(xyz, points).numpy(), strict=True):
            clouds[index] = clouds[index][keep]
    return clouds


def _keep(path: Path, clouds: list[np.ndarray], labels: np.ndarray) -> None:
    try:
        with whole_file(path) as scratch, scratch.open("wb") as file:
            pickle.dump([clouds, [np.array([label], dtype=np.int32) for label in labels]], file)
    except OSError as error:
        _logger.warning("%s cannot be kept (%s): the text files are read again next time.", path, error.strerror)
