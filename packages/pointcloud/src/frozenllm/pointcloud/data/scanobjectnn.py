"""ScanObjectNN: objects cut from scans of rooms, in 15 classes, as h5 files.

``<root>/main_split/{training,test}_objectdataset.h5`` (with background), ``<root>/main_split_nobg/`` (the object alone)
and ``main_split/{training,test}_objectdataset_augmentedrot_scale75.h5`` (PB_T50_RS, the hardest: five copies of every
object, moved, rotated and scaled). Their key ``data`` is (S, 2048, 3), ``label`` (S,), and ``mask`` (S, 2048), which is
-1 for points of the background; training has no use for it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from frozenllm.pointcloud.data.clouds import PointClouds

__all__ = ["CLASSES", "VARIANTS", "read_h5", "read_mask", "scanobjectnn"]

VARIANTS = {
    "objectbg": ("main_split", "objectdataset"),
    "objectonly": ("main_split_nobg", "objectdataset"),
    "hardest": ("main_split", "objectdataset_augmentedrot_scale75"),
}
"""Folder and file name of each variant: the paper's BG, OBJ and T50."""

CLASSES = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow", "sink",
    "sofa", "toilet",
)  # fmt: skip
"""Names of the classes, in the order of their numbers."""

BACKGROUND = -1
"""Of the key ``mask`` (official ``data_utils.py``)."""

_SPLITS = {"train": "training", "test": "test"}


def scanobjectnn(root: str | None, variant: str, split: str, *, num_classes: int = 15, **options: Any) -> PointClouds:
    """One split of one variant. Clouds are used as they are stored: the official code does not scale them.

    Args:
        root: Folder that holds ``main_split`` and ``main_split_nobg``.
        variant: One of `VARIANTS`.
        split: ``"train"`` or ``"test"``.
        num_classes: Upper bound of the classes.
        **options: Of `PointClouds`: ``part``, ``share``, ``split_seed``, ``train``, ``on_error``.

    Raises:
        ValueError: The file is missing or damaged, or a name is unknown.
    """
    if root is None:
        raise ValueError("ScanObjectNN is not there yet: give its folder with data.root=/path/to/ScanObjectNN.")
    if variant not in VARIANTS:
        raise ValueError(f"data.variant must be one of {', '.join(VARIANTS)}, not {variant!r}.")
    if split not in _SPLITS:
        raise ValueError(f"A split of ScanObjectNN is train or test, not {split!r}.")
    folder, name = VARIANTS[variant]
    path = Path(root) / folder / f"{_SPLITS[split]}_{name}.h5"
    clouds, labels = read_h5(path)
    return PointClouds(clouds, labels, where=str(path), num_classes=num_classes, **options)


def read_h5(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Clouds ``(S, N, 3)`` in float32 and classes ``(S,)`` of a file in ScanObjectNN's layout.

    Raises:
        ValueError: The file is missing, damaged, lacks a key, or its arrays have other shapes or types.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: ScanObjectNN has main_split/ and main_split_nobg/ with h5 files.")
    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in ("data", "label") if not isinstance(file.get(key), h5py.Dataset)]
            if missing:
                held = ", ".join(key if key.isprintable() else repr(key) for key in file) or "none"
                raise ValueError(f"{path}: has no key {' and no '.join(missing)}; it has {held}.")
            clouds, labels = file["data"][()], file["label"][()]
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path}: is damaged or not an h5 file ({str(error).splitlines()[0][:120]}).") from error
    if clouds.ndim != 3 or clouds.shape[2] != 3 or clouds.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: data must be numbers of shape (clouds, points, 3), not {clouds.dtype} {clouds.shape}."
        )
    labels = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{path}: label must be whole numbers of shape (clouds,), not {labels.dtype} {labels.shape}.")
    return clouds.astype(np.float32, copy=False), labels.astype(np.int64)


def read_mask(path: str | os.PathLike[str]) -> np.ndarray | None:
    """Which points of a file's clouds are on the object, ``(S, N)`` bool; None where the file does not say.

    Raises:
        ValueError: The file is missing or damaged, or the mask does not fit its clouds.
    """
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("mask"), h5py.Dataset):
                return None
            mask, shape = file["mask"][()], file["data"].shape
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path}: is damaged or not an h5 file ({str(error).splitlines()[0][:120]}).") from error
    if mask.shape != shape[:2]:
        raise ValueError(f"{path}: mask must have shape {tuple(shape[:2])}, not {mask.shape}.")
    return mask != BACKGROUND
