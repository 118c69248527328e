"""The classifier and its data in mmdet3d's registries, for configs and runners of that library.

Importing this module registers (``custom_imports = dict(imports=["frozenllm.pointcloud.mmdet3d"])`` in a config):

- models ``PointBERT`` and ``PointCloudTask`` (the model with loss and predictions that a runner trains);
- data sets ``ScanObjectNNDataset`` and ``ModelNet40Dataset``, whose samples are mmdet3d's points: mmdet3d's own
  transforms work on them (``PointSample``, ``GlobalRotScaleTrans``, ``RandomJitterPoints``, ``RandomFlip3D``, ...);
- transforms ``FarthestPointSample``, which mmdet3d lacks, and ``PackClouds``, the last of a pipeline;
- the metric ``frozenllm.Accuracy``.

Loaders need ``collate_fn=dict(type="default_collate")``: clouds of one size make a tensor.

The figures of this project are those of `frozenllm.pointcloud.train`, whose transforms run on the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch

from frozenllm.pointcloud.detection.extra import require_mmdet3d

require_mmdet3d()

import mmdet3d.datasets.transforms  # noqa: E402, F401 - registers mmdet3d's transforms
from mmcv.transforms import BaseTransform  # noqa: E402
from mmdet3d.registry import DATASETS, MODELS, TRANSFORMS  # noqa: E402
from mmdet3d.structures.points import DepthPoints  # noqa: E402
from mmengine.dataset import BaseDataset  # noqa: E402

from frozenllm.pointcloud.data import PointClouds, modelnet40, scanobjectnn  # noqa: E402
from frozenllm.pointcloud.data.scanobjectnn import CLASSES  # noqa: E402
from frozenllm.pointcloud.ops import farthest_point_sample  # noqa: E402
from frozenllm.pointcloud.task import PointCloudTask  # noqa: E402
from frozenllm.pointcloud.train import build_point_bert  # noqa: E402

__all__ = ["FarthestPointSample", "ModelNet40Dataset", "PackClouds", "ScanObjectNNDataset"]


class _CloudDataset(BaseDataset, ABC):
    """A `PointClouds` whose samples are ``{"points": DepthPoints, "gt_label": int, "sample_idx": int}``.

    Args:
        z_up: Turn clouds whose y axis points up so that z does, as mmdet3d's transforms expect of depth points.
        pipeline: Transforms, the last of which is ``PackClouds``.
        **options: Of `read`.
    """

    def __init__(self, *, z_up: bool = False, pipeline: Any = (), metainfo: Any = None, **options: Any) -> None:
        self.source = self.read(**options)
        self.z_up = z_up
        super().__init__(metainfo=metainfo, pipeline=list(pipeline), serialize_data=False, data_root="")

    @staticmethod
    @abstractmethod
    def read(**options: Any) -> PointClouds:
        """The clouds."""

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry per cloud, without its points."""
        return [{"gt_label": int(label)} for label in self.source.targets]

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """The entry with its points.

        Raises:
            BrokenSample: The cloud cannot be used.
        """
        info = super().get_data_info(idx)
        points = self.source.read(info["sample_idx"])["inputs"]
        if self.z_up:
            points = torch.stack([points[:, 0], -points[:, 2], points[:, 1]], dim=1)
        return {**info, "points": DepthPoints(points)}


@DATASETS.register_module()
class ScanObjectNNDataset(_CloudDataset):
    """ScanObjectNN; arguments of `frozenllm.pointcloud.data.scanobjectnn`, ``z_up``, ``pipeline`` and ``metainfo``."""

    METAINFO = {"classes": CLASSES}  # noqa: RUF012 - mmengine's form

    @staticmethod
    def read(**options: Any) -> PointClouds:
        """See `frozenllm.pointcloud.data.scanobjectnn`."""
        return scanobjectnn(**options)


@DATASETS.register_module()
class ModelNet40Dataset(_CloudDataset):
    """ModelNet40; arguments of `frozenllm.pointcloud.data.modelnet40`, ``z_up``, ``pipeline`` and ``metainfo``."""

    @staticmethod
    def read(**options: Any) -> PointClouds:
        """See `frozenllm.pointcloud.data.modelnet40`."""
        return modelnet40(**options)


@TRANSFORMS.register_module()
class FarthestPointSample(BaseTransform):
    """Thins ``points`` by farthest point sampling; ``PointSample`` behind it makes the official training views.

    Args:
        num_points: Points to keep; a cloud with fewer stays as it is.
        random_start: Start at a random point (training) or at the first (evaluation).
    """

    def __init__(self, num_points: int, random_start: bool = False) -> None:
        self.num_points, self.random_start = num_points, random_start

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replaces ``points``."""
        points = results["points"]
        if len(points) > self.num_points:
            start = int(np.random.randint(len(points))) if self.random_start else 0
            keep = farthest_point_sample(points.coord.unsqueeze(0), self.num_points, start=start)[0]
            results["points"] = points[keep]
        return results


@TRANSFORMS.register_module()
class PackClouds(BaseTransform):
    """What `PointCloudTask` takes: ``{"inputs": (N, 3), "targets": int, "index": int}``."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """A new sample."""
        return {
            "inputs": results["points"].coord.float(),
            "targets": results["gt_label"],
            "index": results["sample_idx"],
        }


# A second import (a reload, or under another name) finds them there.
MODELS.register_module("PointBERT", module=build_point_bert, force=True)
MODELS.register_module("PointCloudTask", module=PointCloudTask, force=True)
