"""The toy scenes, as mmdet3d's own data sets and transforms read them."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frozenllm.core.toy_folder import MANIFEST
from frozenllm.pointcloud.detection.toy_kitti import corners, points_in_box, scene, write_kitti
from frozenllm.pointcloud.detection.toy_scannet import CLASSES, NYU40, write_scannet

TOYS = {"kitti": write_kitti, "scannet": write_scannet}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("toy")
    return {name: write(folder / name, train=4, val=2) for name, write in TOYS.items()}


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", TOYS)
def test_scenes_are_the_same_every_time_and_differ_by_seed(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    assert digest(TOYS[name](tmp_path / "again", train=4, val=2)) == digest(folders[name])
    other = digest(TOYS[name](tmp_path / "other", train=4, val=2, seed=1))
    same = [file for file, value in digest(folders[name]).items() if other.get(file) == value and ".bin" in file]
    assert not [file for file in same if "mask" not in file]


@pytest.mark.parametrize("name", TOYS)
def test_a_folder_with_something_else_is_left_alone(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    before = digest(folders[name])
    with pytest.raises(ValueError, match="holds toy data written with other settings"):
        TOYS[name](folders[name], train=3, val=2)
    assert digest(folders[name]) == before
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else than toy data"):
        TOYS[name](tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    assert not (tmp_path / MANIFEST).exists()


def test_a_scanner_sees_the_near_sides_only() -> None:
    cloud, boxes, names, owners = scene(np.random.default_rng(3))
    assert names[:2] == ["Car", "Car"]
    for index, box in enumerate(boxes):
        own = cloud[owners == index]
        assert len(own) > 50
        assert points_in_box(own, box).mean() > 0.9  # the rest is noise
        assert np.linalg.norm(own[:, :2], axis=1).mean() < np.linalg.norm(corners(box)[:, :2], axis=1).mean() + 0.3
    overlaps = [points_in_box(cloud[owners == i], b).any() for i in range(len(boxes)) for b in np.delete(boxes, i, 0)]
    assert not any(overlaps)


def test_kitti_boxes_come_back_from_the_camera_s_frame(folders: dict[str, Path], uncompiled_mmdet3d: None) -> None:
    from mmdet3d import datasets

    data = datasets.KittiDataset(
        str(folders["kitti"]), "kitti_infos_train.pkl", data_prefix={"pts": "training/velodyne_reduced"}
    )
    assert len(data) == 4
    for number in range(4):
        info = data.get_data_info(number)
        cloud, boxes, names, _ = scene(np.random.default_rng((0, number)))
        found = info["ann_info"]
        np.testing.assert_allclose(found["gt_bboxes_3d"].tensor[:, :6], boxes[:, :6], atol=1e-4)
        turned = found["gt_bboxes_3d"].tensor[:, 6].numpy() - boxes[:, 6]
        np.testing.assert_allclose(np.sin(turned), 0, atol=1e-4)
        np.testing.assert_allclose(np.cos(turned), 1, atol=1e-4)
        assert [data.METAINFO["classes"][label] for label in found["gt_labels_3d"]] == names
        read = np.fromfile(info["lidar_path"], dtype=np.float32).reshape(-1, 4)
        np.testing.assert_array_equal(read, cloud)
        inside = found["gt_bboxes_3d"].new_box(boxes).corners.numpy()
        for index, box in enumerate(boxes):  # as sets: the orders of corners differ
            wanted, there = (sorted(np.round(c, 3).tolist()) for c in (corners(box), inside[index]))
            np.testing.assert_allclose(there, wanted, atol=2e-3)
        ground = info["plane"]  # in lidar coordinates by now: z of the ground
        assert -ground[3] / ground[2] == pytest.approx(-1.73, abs=1e-3)


def test_kitti_objects_lie_around_their_own_origin(folders: dict[str, Path]) -> None:
    with open(folders["kitti"] / "kitti_dbinfos_train.pkl", "rb") as file:
        database: dict[str, list[dict[str, Any]]] = pickle.load(file)
    assert sorted(database) == ["Car", "Cyclist", "Pedestrian"]
    for entries in database.values():
        assert entries
        for entry in entries:
            own = np.fromfile(folders["kitti"] / entry["path"], dtype=np.float32).reshape(-1, 4)
            assert len(own) == entry["num_points_in_gt"]
            own[:, :3] += entry["box3d_lidar"][:3]
            assert points_in_box(own, entry["box3d_lidar"]).mean() > 0.9


def test_scannet_boxes_bound_the_aligned_points(folders: dict[str, Path], uncompiled_mmdet3d: None) -> None:
    from mmdet3d import datasets

    pipeline = [
        {"type": "LoadPointsFromFile", "coord_type": "DEPTH", "load_dim": 6, "use_dim": [0, 1, 2]},
        {"type": "LoadAnnotations3D", "with_mask_3d": True, "with_seg_3d": True},
        {"type": "GlobalAlignment", "rotation_axis": 2},
        {"type": "PointSegClassMapping"},
        {"type": "Pack3DDetInputs", "keys": ["points", "gt_bboxes_3d", "gt_labels_3d", "pts_semantic_mask",
                                            "pts_instance_mask"]},
    ]  # fmt: skip
    for step in pipeline:
        step["type"] = f"mmdet3d.{step['type']}"
    data = datasets.ScanNetDataset(str(folders["scannet"]), "scannet_infos_val.pkl", pipeline=pipeline)
    assert len(data) == 2
    for item in data:
        cloud, sample = item["inputs"]["points"].numpy(), item["data_samples"]
        boxes, labels = sample.gt_instances_3d.bboxes_3d, sample.gt_instances_3d.labels_3d.tolist()
        masks = sample.gt_pts_seg
        assert sorted(set(masks.pts_instance_mask.tolist())) == list(range(len(labels) + 1))
        for index, label in enumerate(labels, start=1):
            own = cloud[(masks.pts_instance_mask == index).numpy()]
            low, high = own.min(0), own.max(0)
            np.testing.assert_allclose(boxes.gravity_center[index - 1], (low + high) / 2, atol=1e-4)
            np.testing.assert_allclose(boxes.dims[index - 1], high - low, atol=1e-4)
            assert set(masks.pts_semantic_mask[masks.pts_instance_mask == index].tolist()) == {label}
            assert CLASSES[label] in NYU40
        assert set(masks.pts_semantic_mask[masks.pts_instance_mask == 0].tolist()) == {len(CLASSES)}
