"""Toy rooms in ScanNet's layout as mmdet3d's ``create_data.py`` leaves it, for VoteNet.

A floor, two walls and a few pieces of furniture made of boxes. Scans are stored unaligned, as ScanNet's are; the matrix
that aligns them with the axes stands in the annotation.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frozenllm.core.toy_folder import write_once
from frozenllm.pointcloud.detection.toy_files import main, write_infos

CLASSES = (  # ScanNetDataset's order
    "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter", "desk", "curtain",
    "refrigerator", "showercurtrain", "toilet", "sink", "bathtub", "garbagebin",
)  # fmt: skip
NYU40 = {"wall": 1, "floor": 2, "cabinet": 3, "bed": 4, "chair": 5, "sofa": 6}
ROOM = 2.0  # half its width, metres
WALL, PIECE = 300, 500  # points on a wall, and on a piece of furniture

# Boxes that make up a piece of furniture: centre and size (x, y, z) in metres, on the floor. The first four classes of
# ScanNetDataset, so that a config may take these alone.
FURNITURE: dict[str, list[tuple[float, ...]]] = {
    "cabinet": [(0, 0, 0.6, 0.8, 0.5, 1.2)],
    "bed": [(0, 0, 0.25, 1.3, 1.7, 0.5)],
    "chair": [(0, 0, 0.42, 0.5, 0.5, 0.06), (0, 0.23, 0.65, 0.5, 0.05, 0.4)]
    + [(x, y, 0.2, 0.05, 0.05, 0.4) for x in (-0.22, 0.22) for y in (-0.22, 0.22)],
    "sofa": [(0, 0, 0.2, 1.6, 0.7, 0.4), (0, 0.3, 0.6, 1.6, 0.15, 0.4)]
    + [(x, 0, 0.5, 0.15, 0.7, 0.2) for x in (-0.72, 0.72)],
}


def write_scannet(root: str | os.PathLike[str] | None = None, *, train: int = 16, val: int = 4, seed: int = 0) -> Path:
    """Write the rooms, once.

    Args:
        root: The folder; None for one in the user's cache.
        train: Number of training rooms.
        val: Number of validation rooms.
        seed: The same seed gives the same bytes.

    Returns:
        The folder: ``scannet_infos_{train,val}.pkl``, ``points``, ``instance_mask`` and ``semantic_mask``.

    Raises:
        ValueError: The folder holds something else.
    """
    manifest = {"data": "toy ScanNet", "format": 1, "train": train, "val": val, "seed": seed}
    return write_once(root, "scannet", manifest, lambda folder: _write(folder, {"train": train, "val": val}, seed))


def _write(root: Path, splits: dict[str, int], seed: int) -> None:
    for name in ("points", "instance_mask", "semantic_mask"):
        (root / name).mkdir()
    number = 0
    for split, count in splits.items():
        infos = []
        for _ in range(count):
            points, instances, semantics, boxes, labels, align = room(np.random.default_rng((seed, number)))
            file = f"scene{number:04d}_00.bin"
            points.tofile(root / "points" / file)
            instances.tofile(root / "instance_mask" / file)
            semantics.tofile(root / "semantic_mask" / file)
            objects = zip(boxes.tolist(), labels.tolist(), strict=True)
            infos.append(
                {
                    "lidar_points": {"num_pts_feats": 6, "lidar_path": file},
                    "pts_semantic_mask_path": file,
                    "pts_instance_mask_path": file,
                    "axis_align_matrix": align.tolist(),
                    "instances": [{"bbox_3d": box, "bbox_label_3d": label} for box, label in objects],
                }
            )
            number += 1
        write_infos(root / f"scannet_infos_{split}.pkl", "scannet", {name: i for i, name in enumerate(CLASSES)}, infos)


def room(rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
    """One room.

    Returns:
        Points (N, 6) float32 with colours, not aligned; instance ids (N,) int64, 0 for walls and floor; NYU40 classes
        (N,) int64; boxes (M, 6) of the aligned points: centre and sizes; their labels (M,); the aligning matrix (4, 4).
    """
    parts = [_wall(rng, axis) for axis in range(3)]
    semantics = [np.full(len(part), NYU40["floor" if axis == 2 else "wall"]) for axis, part in enumerate(parts)]
    instances = [np.zeros(len(part), dtype=np.int64) for part in parts]
    corners = np.array([(x, y) for x in (-1.0, 1.0) for y in (-1.0, 1.0)])[rng.permutation(4)]
    names = [str(name) for name in rng.permutation(list(FURNITURE))[: rng.integers(3, 5)]]
    boxes = []
    for identity, (name, corner) in enumerate(zip(names, corners, strict=False), start=1):
        part = _furniture(name, rng)
        part[:, :2] += corner * 0.9 + rng.uniform(-0.1, 0.1, 2)
        boxes.append(np.concatenate([(part.min(0) + part.max(0)) / 2, part.max(0) - part.min(0)]))
        parts.append(part)
        semantics.append(np.full(len(part), NYU40[name]))
        instances.append(np.full(len(part), identity))
    aligned = np.concatenate(parts)
    align = _turn(rng.uniform(-math.pi, math.pi))
    align[:3, 3] = rng.uniform(-1, 1, 3)
    raw = (aligned - align[:3, 3]) @ align[:3, :3]  # the inverse of a rotation is its transpose
    points = np.column_stack([raw, rng.uniform(0, 255, raw.shape)]).astype(np.float32)
    labels = np.array([CLASSES.index(name) for name in names])
    identities = np.concatenate(instances).astype(np.int64)
    return points, identities, np.concatenate(semantics).astype(np.int64), np.stack(boxes), labels, align


def _wall(rng: np.random.Generator, axis: int) -> NDArray[np.float64]:
    """The floor (axis 2) or a wall."""
    part = rng.uniform(-ROOM, ROOM, (WALL, 3))
    part[:, 2] = rng.uniform(0, 2, WALL)
    part[:, axis] = 0.0 if axis == 2 else -ROOM
    return part + rng.normal(0, 0.005, part.shape)


def _furniture(name: str, rng: np.random.Generator, count: int = PIECE) -> NDArray[np.float64]:
    """Points on the surfaces of a piece of furniture, a little scaled, turned by a multiple of 90 degrees."""
    boxes = np.array(FURNITURE[name])
    areas = boxes[:, 3] * boxes[:, 4] + boxes[:, 4] * boxes[:, 5] + boxes[:, 3] * boxes[:, 5]
    chosen = boxes[rng.choice(len(boxes), count, p=areas / areas.sum())]
    place = rng.uniform(-0.5, 0.5, (count, 3))
    face = rng.integers(0, 3, count)
    place[np.arange(count), face] = rng.choice([-0.5, 0.5], count)
    part = (chosen[:, :3] + place * chosen[:, 3:]) * rng.uniform(0.95, 1.05, 3)
    turn = _turn(math.pi / 2 * rng.integers(0, 4))[:3, :3]
    return part @ turn.T


def _turn(angle: float) -> NDArray[np.float64]:
    """A rotation about the vertical axis, (4, 4)."""
    matrix = np.eye(4)
    matrix[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return matrix


if __name__ == "__main__":
    main(write_scannet, "Write toy rooms in ScanNet's layout.")
