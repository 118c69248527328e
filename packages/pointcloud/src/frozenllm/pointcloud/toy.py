"""Toy data in ScanObjectNN's and ModelNet40's on-disk formats, so that the real readers read it.

The shapes are those of `frozenllm.pointcloud.toy_shapes`: noisy, rotated, partly hidden.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import h5py
import numpy as np

from frozenllm.core.toy_folder import write_once
from frozenllm.pointcloud.data.scanobjectnn import VARIANTS
from frozenllm.pointcloud.toy_shapes import SHAPES, make_clouds

__all__ = ["write_modelnet", "write_scanobjectnn"]


def write_scanobjectnn(
    root: str | os.PathLike[str] | None = None, *, train: int = 640, test: int = 240, points: int = 512, seed: int = 0
) -> Path:
    """Writes all three variants as ScanObjectNN's h5 files, once: whole or not at all.

    Args:
        root: The folder; None for one in the user's cache.
        train: Clouds of the training split.
        test: Clouds of the test split.
        points: Points of a cloud; the real ones have 2048.
        seed: Of everything.

    Returns:
        The folder.

    Raises:
        ValueError: The folder holds something else.
    """
    settings = {"data": "toy ScanObjectNN", "format": 2, "train": train, "test": test, "points": points, "seed": seed}

    def fill(folder: Path) -> None:
        for number, (variant, (subfolder, name)) in enumerate(VARIANTS.items()):
            (folder / subfolder).mkdir(exist_ok=True)
            for split, count in (("training", train), ("test", test)):
                draw = seed * 1000 + 2 * number + (split == "test")
                clouds, labels, on_object = make_clouds(count, points, variant=variant, seed=draw)
                with h5py.File(folder / subfolder / f"{split}_{name}.h5", "w") as file:
                    file.create_dataset("data", data=clouds)
                    file.create_dataset("label", data=labels.astype(np.int32))
                    file.create_dataset("mask", data=np.where(on_object, 0, -1).astype(np.int32))

    return write_once(root, "scanobjectnn", settings, fill)


def write_modelnet(
    root: str | os.PathLike[str] | None = None,
    *,
    train: int = 160,
    test: int = 80,
    points: int = 1024,
    seed: int = 0,
    text: bool = True,
) -> Path:
    """Writes shapes as ModelNet40's files, once: the lists, and text files or the pickles made from them.

    The shapes are whole and free of noise, as CAD models are. In the place of normals, which readers drop, stand the
    directions from the middle.

    Args:
        root: The folder; None for one in the user's cache.
        train: Clouds of the training split.
        test: Clouds of the test split.
        points: Points of a cloud; the real text files have 10,000, the pickles 8192.
        seed: Of everything.
        text: Text files; False: the pickles ``modelnet40_{train,test}_<points>pts_fps.dat``.

    Returns:
        The folder.

    Raises:
        ValueError: The folder holds something else.
    """
    settings = {"data": "toy ModelNet40", "format": 1, "train": train, "test": test, "points": points, "seed": seed}
    names = list(SHAPES)

    def fill(folder: Path) -> None:
        (folder / "modelnet40_shape_names.txt").write_text("\n".join(names) + "\n")
        numbers = dict.fromkeys(names, 0)
        for split, count in (("train", train), ("test", test)):
            clouds, labels, _ = make_clouds(count, points, variant="clean", seed=seed * 1000 + 500 + (split == "test"))
            normals = clouds / np.linalg.norm(clouds, axis=2, keepdims=True).clip(1e-9)
            rows, shapes = np.concatenate([clouds, normals], axis=2), []
            for label in labels:
                numbers[names[label]] += 1
                shapes.append(f"{names[label]}_{numbers[names[label]]:04d}")
            (folder / f"modelnet40_{split}.txt").write_text("\n".join(shapes) + "\n")
            if not text:
                with (folder / f"modelnet40_{split}_{points}pts_fps.dat").open("wb") as file:
                    pickle.dump([list(rows), [np.array([label], dtype=np.int32) for label in labels]], file)
                continue
            for shape, row in zip(shapes, rows, strict=True):
                path = folder / shape.rpartition("_")[0] / f"{shape}.txt"
                path.parent.mkdir(exist_ok=True)
                np.savetxt(path, row, fmt="%.6f", delimiter=",")

    return write_once(root, "modelnet40", {**settings, "text": text}, fill)
