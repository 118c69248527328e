"""Toy data in ScanObjectNN's and ModelNet40's on-disk formats, so that the real readers read it.

The shapes are those of `frozenllm.pointcloud.toy_shapes`: noisy, rotated, partly hidden.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from frozenllm.pointcloud.data.scanobjectnn import VARIANTS
from frozenllm.pointcloud.toy_shapes import SHAPES, make_clouds

__all__ = ["write_modelnet", "write_scanobjectnn"]

_MANIFEST = "toy.json"


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
    settings = {"data": "toy ScanObjectNN", "format": 1, "train": train, "test": test, "points": points, "seed": seed}

    def fill(folder: Path) -> None:
        for number, (variant, (subfolder, name)) in enumerate(VARIANTS.items()):
            (folder / subfolder).mkdir(exist_ok=True)
            for split, count in (("training", train), ("test", test)):
                draw = seed * 1000 + 2 * number + (split == "test")
                clouds, labels = make_clouds(count, points, variant=variant, seed=draw)
                with h5py.File(folder / subfolder / f"{split}_{name}.h5", "w") as file:
                    file.create_dataset("data", data=clouds)
                    file.create_dataset("label", data=labels.astype(np.int32))

    return _write_once(root, settings, fill)


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
            clouds, labels = make_clouds(count, points, variant="clean", seed=seed * 1000 + 500 + (split == "test"))
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

    return _write_once(root, {**settings, "text": text}, fill)


def _write_once(root: str | os.PathLike[str] | None, settings: dict[str, object], fill: Callable[[Path], None]) -> Path:
    """Fill a folder beside its place and rename it; one with the same settings is left as it is."""
    if root is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = "-".join(str(value).lower().replace(" ", "-") for value in settings.values())
        root = cache / "frozenllm" / "toy" / name
    root = Path(root)
    if _is_written(root, settings):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        fill(scratch)
        (scratch / _MANIFEST).write_text(json.dumps(settings, indent=2) + "\n")
        scratch.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        try:
            scratch.rename(root)
        except OSError:  # the folder is there and not empty: another process was faster, or it holds something else
            if not _is_written(root, settings):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root


def _is_written(root: Path, settings: dict[str, object]) -> bool:
    if not root.exists():
        return False
    try:
        found = json.loads((root / _MANIFEST).read_text())
    except (OSError, ValueError):
        found = None
    if found == settings:
        return True
    if found is None and root.is_dir() and not any(root.iterdir()):
        return False
    held = "toy data written with other settings" if found is not None else "something else than toy data"
    raise ValueError(f"{root} holds {held}: name another folder, or remove this one.")
