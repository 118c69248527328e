"""The classifier in mmdet3d's registries; and classification without mmdet3d."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmdet3d")
pytest.importorskip("mmcv.ops")

SPEC = {"hidden_size": 32, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 48}


@pytest.fixture(scope="module")
def config(scans_root: Path) -> dict[str, Any]:
    """A config as users of mmdet3d write it."""
    load = {"type": "FarthestPointSample", "num_points": 56}
    train_pipeline = [
        {**load, "random_start": True},
        {"type": "PointSample", "num_points": 48},
        {"type": "GlobalRotScaleTrans", "rot_range": [-3.14, 3.14], "scale_ratio_range": [0.8, 1.25],
         "translation_std": [0.1, 0.1, 0.1]},
        {"type": "RandomFlip3D", "sync_2d": False, "flip_ratio_bev_horizontal": 0.5},
        {"type": "RandomJitterPoints", "jitter_std": [0.01, 0.01, 0.01]},
        {"type": "PackClouds"},
    ]  # fmt: skip
    data = {"type": "ScanObjectNNDataset", "root": str(scans_root), "variant": "hardest", "z_up": True}
    loader = {
        "batch_size": 16,
        "num_workers": 0,
        "persistent_workers": False,
        "collate_fn": {"type": "default_collate"},
    }
    test_data = {**data, "split": "test", "pipeline": [{**load, "num_points": 48}, {"type": "PackClouds"}]}
    return {
        "default_scope": "mmdet3d",
        "custom_imports": {"imports": ["frozenllm.pointcloud.mmdet3d"]},
        "model": {"type": "PointCloudTask", "model": {
            "type": "PointBERT", "num_classes": 15, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_groups": 6,
            "group_size": 8, "llm": {"kind": "random", "spec": SPEC},
        }},
        "train_dataloader": {**loader, "sampler": {"type": "DefaultSampler", "shuffle": True},
                             "dataset": {**data, "split": "train", "pipeline": train_pipeline}},
        "val_dataloader": {**loader, "sampler": {"type": "DefaultSampler", "shuffle": False}, "dataset": test_data},
        "train_cfg": {"by_epoch": True, "max_epochs": 1},
        "val_cfg": {},
        "val_evaluator": {"type": "frozenllm.Accuracy"},
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 1e-3}},
    }  # fmt: skip


def test_mmdet3ds_runner_trains_and_evaluates(config: dict[str, Any], tmp_path: Path) -> None:
    from mmengine.config import Config
    from mmengine.runner import Runner

    Config({**config, "work_dir": str(tmp_path), "log_level": "ERROR"}).dump(tmp_path / "config.py")
    runner = Runner.from_cfg(Config.fromfile(tmp_path / "config.py"))
    runner.train()
    assert runner.iter == 5
    assert 0 <= runner.val()["accuracy/top1"] <= 100
    sample = runner.train_dataloader.dataset[0]
    assert sample["inputs"].shape == (48, 3)


def test_points_are_mmdet3ds_and_those_of_the_reader(config: dict[str, Any], scans_root: Path) -> None:
    from mmdet3d.registry import DATASETS, MODELS
    from mmdet3d.structures.points import DepthPoints

    import frozenllm.pointcloud.mmdet3d
    from frozenllm.pointcloud.data import scanobjectnn
    from frozenllm.pointcloud.ops import farthest_point_sample

    plain = DATASETS.build({"type": "ScanObjectNNDataset", "root": str(scans_root), "variant": "objectbg",
                            "split": "train", "part": "fit", "share": 0.25})  # fmt: skip
    source = scanobjectnn(str(scans_root), "objectbg", "train", part="fit", share=0.25)
    assert len(plain) == len(source) == 64 < 80
    info = plain.get_data_info(7)
    assert isinstance(info["points"], DepthPoints)
    assert torch.equal(info["points"].coord, source[7]["inputs"])
    assert info["gt_label"] == source[7]["targets"]
    assert plain.metainfo["classes"][14] == "toilet"
    turned = DATASETS.build({"type": "ScanObjectNNDataset", "root": str(scans_root), "variant": "objectbg",
                             "split": "train", "part": "fit", "share": 0.25, "z_up": True})  # fmt: skip
    x, y, z = source[7]["inputs"].T
    assert torch.equal(turned.get_data_info(7)["points"].coord, torch.stack([x, -z, y], dim=1))
    thinned = frozenllm.pointcloud.mmdet3d.FarthestPointSample(9)({"points": info["points"]})["points"].coord
    assert torch.equal(thinned, source[7]["inputs"][farthest_point_sample(source[7]["inputs"][None], 9)[0]])
    model = MODELS.build({"type": "PointBERT", "num_classes": 3, "embed_dim": 12, "depth": 1, "num_heads": 1})
    assert model(torch.randn(1, 40, 3)).shape == (1, 3)


def test_classification_needs_neither_mmcv_nor_mmdet3d(scans_root: Path) -> None:
    """Without them the package imports, classifies, and says what the adapter lacks."""
    code = f"""
import sys
for name in ("mmcv", "mmdet", "mmdet3d"):
    sys.modules[name] = None
import torch
import frozenllm.pointcloud, frozenllm.pointcloud.train, frozenllm.pointcloud.detection.train
from frozenllm.pointcloud.data import scanobjectnn
points = scanobjectnn({str(scans_root)!r}, "hardest", "test")[0]["inputs"]
print(tuple(frozenllm.pointcloud.PointBERT(15, 24, 1, 2, llm="bundled").eval()(points[None]).shape))
try:
    import frozenllm.pointcloud.mmdet3d
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shape, sentence = done.stdout.splitlines()
    assert shape == "(1, 15)"
    assert "frozenllm-pointcloud[mmdet3d]" in sentence
