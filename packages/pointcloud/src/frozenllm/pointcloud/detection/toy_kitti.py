"""Toy scenes in KITTI's layout as mmdet3d's ``create_data.py`` leaves it, for PointPillars.

A flat street with cars, pedestrians and cyclists: boxes of the size of mmdet3d's anchors, of which the scanner at the
origin sees the faces turned to it. Coordinates: lidar x forward, y left, z up; camera x right, y down, z forward.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frozenllm.core.toy_folder import write_once
from frozenllm.pointcloud.detection.toy_files import main, write_infos

Array = NDArray[np.float32]

CLASSES = ("Pedestrian", "Cyclist", "Car", "Van", "Truck", "Person_sitting", "Tram", "Misc")  # KittiDataset's order
SIZES = {"Pedestrian": (0.8, 0.6, 1.73), "Cyclist": (1.76, 0.6, 1.73), "Car": (3.9, 1.6, 1.56)}  # PointPillars' anchors
GROUND = -1.73  # height of KITTI's scanner, metres
NEAR, FAR = 6.0, 19.0
STREET = 1500  # points on the street
IMAGE = (375, 1242)  # height, width
LIDAR_TO_CAMERA = np.array([[0, -1, 0, 0], [0, 0, -1, -0.08], [1, 0, 0, -0.27], [0, 0, 0, 1]], dtype=np.float32)
CAMERA = np.array([[720, 0, 610, 0], [0, 720, 173, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float32)


def write_kitti(root: str | os.PathLike[str] | None = None, *, train: int = 16, val: int = 4, seed: int = 0) -> Path:
    """Write the scenes, once.

    Args:
        root: The folder; None for one in the user's cache.
        train: Number of training scenes.
        val: Number of validation scenes.
        seed: The same seed gives the same bytes.

    Returns:
        The folder, with ``kitti_infos_{train,val}.pkl``, ``kitti_dbinfos_train.pkl``,
        ``training/velodyne_reduced/*.bin`` and ``kitti_gt_database/*.bin``.

    Raises:
        ValueError: The folder holds something else.
    """
    manifest = {"data": "toy KITTI", "format": 1, "train": train, "val": val, "seed": seed}
    return write_once(root, "kitti", manifest, lambda folder: _write(folder, {"train": train, "val": val}, seed))


def _write(root: Path, splits: dict[str, int], seed: int) -> None:
    clouds, objects = root / "training" / "velodyne_reduced", root / "kitti_gt_database"
    clouds.mkdir(parents=True)
    objects.mkdir()
    number = 0
    for split, count in splits.items():
        infos, database = [], {name: [] for name in SIZES}
        for _ in range(count):
            points, boxes, names, owners = scene(np.random.default_rng((seed, number)))
            points.tofile(clouds / f"{number:06d}.bin")
            infos.append(_info(number, points, boxes, names))
            for index, (box, name) in enumerate(zip(boxes, names, strict=True)):
                own = points[owners == index].copy()
                own[:, :3] -= box[:3]
                file = f"{number}_{name}_{index}.bin"
                if split == "train":
                    own.tofile(objects / file)
                    database[name].append(_database_entry(number, index, name, file, box, len(own)))
            number += 1
        write_infos(root / f"kitti_infos_{split}.pkl", "kitti", {name: i for i, name in enumerate(CLASSES)}, infos)
        if split == "train":
            with open(root / "kitti_dbinfos_train.pkl", "wb") as output:
                pickle.dump(database, output)


def scene(rng: np.random.Generator) -> tuple[Array, Array, list[str], NDArray[np.int64]]:
    """One scene.

    Returns:
        Points (N, 4) with intensity; boxes (M, 7): bottom centre, length, width, height, heading; names of their
        classes; and for every point the index of its box or -1.
    """
    boxes: list[Array] = []
    names: list[str] = []
    for name in ["Car", "Car", "Pedestrian", "Cyclist"]:
        for _ in range(50):  # tries; a place that is taken is no place
            x, side = rng.uniform(NEAR, FAR), rng.uniform(-0.45, 0.45)
            size = np.array(SIZES[name]) * rng.uniform(0.95, 1.05, 3)
            yaw = rng.choice([0.0, math.pi / 2]) + rng.normal(0, 0.05)
            box = np.array([x, x * side, GROUND, *size, yaw], dtype=np.float32)
            if all(math.dist(box[:2], b[:2]) > (math.hypot(*box[3:5]) + math.hypot(*b[3:5])) / 2 for b in boxes):
                boxes.append(box)
                names.append(name)
                break
    ground = np.column_stack([rng.uniform(0, 20.4, STREET), rng.uniform(-10.2, 10.2, STREET), np.full(STREET, GROUND)])
    parts = [ground] + [_seen_faces(box, rng) for box in boxes]
    owners = np.concatenate([np.full(len(part), i - 1) for i, part in enumerate(parts)])
    xyz = np.concatenate(parts) + rng.normal(0, 0.005, (len(owners), 3))
    points = np.column_stack([xyz, rng.uniform(0, 1, len(xyz))]).astype(np.float32)
    seen = _in_image(points)
    return points[seen], np.stack(boxes), names, owners[seen]


def _seen_faces(box: Array, rng: np.random.Generator) -> NDArray[np.float64]:
    """Points on those sides of a box that face the origin, and on its top; more of them nearby."""
    length, width, height = box[3:6] * 0.96  # within the box, in spite of noise
    rotation = np.array([[math.cos(box[6]), -math.sin(box[6])], [math.sin(box[6]), math.cos(box[6])]])
    to_scanner = rotation.T @ -box[:2]
    count = int(1800 / np.linalg.norm(box[:2]))
    u, v = rng.uniform(-0.5, 0.5, count), rng.uniform(0.05, 1, count)
    along, across = math.copysign(0.5, to_scanner[0]), math.copysign(0.5, to_scanner[1])
    sides = rng.integers(0, 3, count)
    local = np.select(
        [sides[:, None] == 0, sides[:, None] == 1],
        [
            np.column_stack([np.full(count, along * length), u * width, v * height]),
            np.column_stack([u * length, np.full(count, across * width), v * height]),
        ],
        np.column_stack([u * length, (v - 0.525) * width, np.full(count, height)]),
    )
    return np.column_stack([local[:, :2] @ rotation.T + box[:2], local[:, 2] + box[2]])


def _in_image(points: Array) -> NDArray[np.bool_]:
    pixels, depth = _project(points[:, :3])
    inside = (pixels >= 0).all(1) & (pixels < np.array(IMAGE[::-1])).all(1)
    return inside & (depth > 0)


def _project(xyz: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    camera = np.column_stack([xyz, np.ones(len(xyz))]) @ LIDAR_TO_CAMERA.T
    image = camera @ CAMERA.T
    return image[:, :2] / np.maximum(camera[:, 2:3], 1e-3), camera[:, 2]


def corners(box: Array) -> NDArray[np.float64]:
    """The eight corners (8, 3) of a box in lidar coordinates."""
    signs = np.array(np.meshgrid([-0.5, 0.5], [-0.5, 0.5], [0.0, 1.0])).reshape(3, -1).T
    local = signs * box[3:6]
    cos, sin = math.cos(box[6]), math.sin(box[6])
    turned = (local[:, 0] * cos - local[:, 1] * sin, local[:, 0] * sin + local[:, 1] * cos)
    return np.column_stack([*turned, local[:, 2]]) + box[:3]


def _info(number: int, points: Array, boxes: Array, names: list[str]) -> dict[str, Any]:
    calibration = (LIDAR_TO_CAMERA.tolist(), CAMERA.tolist(), (CAMERA @ LIDAR_TO_CAMERA).tolist())
    camera = dict(zip(("lidar2cam", "cam2img", "lidar2img"), calibration, strict=True))
    return {
        "sample_idx": number,
        "images": {"CAM2": {"img_path": f"{number:06d}.png", "height": IMAGE[0], "width": IMAGE[1], **camera}},
        "lidar_points": {"num_pts_feats": 4, "lidar_path": f"{number:06d}.bin", "Tr_velo_to_cam": calibration[0]},
        "plane": [0.0, -1.0, 0.0, -GROUND - 0.08],  # in camera coordinates, as KITTI's ground planes
        "instances": list(_instances(points, boxes, names)),
    }


def _instances(points: Array, boxes: Array, names: list[str]) -> Iterator[dict[str, Any]]:
    for index, (box, name) in enumerate(zip(boxes, names, strict=True)):
        pixels, _ = _project(corners(box))
        low = np.clip(pixels.min(0), 0, np.array(IMAGE[::-1]) - 1)
        high = np.clip(pixels.max(0), 0, np.array(IMAGE[::-1]) - 1)
        place = (LIDAR_TO_CAMERA @ np.append(box[:3], 1))[:3]
        middle, depth = _project((box[:3] + [0, 0, box[5] / 2])[None])
        turn = -float(box[6]) - math.pi / 2
        label = CLASSES.index(name)
        yield {
            "bbox": [*low.tolist(), *high.tolist()],
            "bbox_label": label,
            "bbox_3d": [*place.tolist(), float(box[3]), float(box[5]), float(box[4]), turn],  # length, height, width
            "bbox_label_3d": label,
            "center_2d": middle[0].tolist(),
            "depth": float(depth[0]),
            "num_lidar_pts": int(points_in_box(points, box).sum()),
            "difficulty": 0 if high[1] - low[1] >= 40 else 1,  # KITTI: easy from 40 pixels of height
            "truncated": 0.0,
            "occluded": 0,
            "alpha": turn - math.atan2(place[0], place[2]),
            "score": 0.0,
            "index": index,
            "group_id": index,
        }


def points_in_box(points: Array, box: Array) -> NDArray[np.bool_]:
    """Which points (N, 3 or more) are in a box."""
    shift = points[:, :3] - box[:3]
    cos, sin = math.cos(box[6]), math.sin(box[6])
    along, across = shift[:, 0] * cos + shift[:, 1] * sin, -shift[:, 0] * sin + shift[:, 1] * cos
    return (abs(along) < box[3] / 2) & (abs(across) < box[4] / 2) & (shift[:, 2] >= 0) & (shift[:, 2] <= box[5])


def _database_entry(number: int, index: int, name: str, file: str, box: Array, count: int) -> dict[str, Any]:
    place = {"path": f"kitti_gt_database/{file}", "image_idx": number, "gt_idx": index, "group_id": index}
    return {"name": name, **place, "box3d_lidar": box, "num_points_in_gt": count, "difficulty": 0, "score": 0.0}


if __name__ == "__main__":
    main(write_kitti, "Write toy scenes in KITTI's layout.")
