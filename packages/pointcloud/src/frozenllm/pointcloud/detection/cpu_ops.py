"""Stand-ins for the kernels that mmcv and mmdet3d have for CUDA alone, so that detectors run on a CPU.

`install` puts them in only where there is no CUDA device, or where mmcv was built without CUDA:

- six autograd functions of mmcv (farthest point sampling, ball query, gathering, grouping, three nearest neighbours and
  their interpolation): their ``forward`` and ``backward`` are replaced, wherever they have been imported to;
- `points_in_boxes_all`: mmcv's own function for CPUs takes its place;
- without a device, the rotated overlap of the KITTI metric, which mmdet3d compiles for CUDA when it is imported.

Indices are int32 as mmcv's are, and ties are settled by the lower index.
"""

from __future__ import annotations

import importlib
import logging
import sys
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frozenllm.pointcloud import ops

logger = logging.getLogger(__name__)

ROTATE_IOU = "mmdet3d.evaluation.functional.kitti_utils.rotate_iou"


def install() -> bool:
    """Put the stand-ins in where mmcv's kernels for CUDA cannot serve; doing it twice is harmless.

    Returns:
        Whether they are in place.
    """
    device = torch.cuda.is_available()
    if device and ops._compiled_ops() is not None:
        return False
    if device:
        logger.warning(
            "mmcv was built without CUDA: slower stand-ins take the place of VoteNet's kernels, and other detectors "
            "fail on this GPU; build it with FORCE_CUDA=1, as docs/pointcloud.md says."
        )
    for module, name, stand_in in _FUNCTIONS:
        function = getattr(importlib.import_module(f"mmcv.ops.{module}"), name)
        function.forward = staticmethod(stand_in.forward)
        function.backward = staticmethod(stand_in.backward)
    for module in ("mmcv.ops.points_in_boxes", "mmcv.ops", "mmdet3d.structures.bbox_3d.base_box3d"):
        importlib.import_module(module).points_in_boxes_all = points_in_boxes_all
    if not device and ROTATE_IOU not in sys.modules:
        sys.modules[ROTATE_IOU] = _rotate_iou_module()
    return True


class FurthestPointSampling:
    """`mmcv.ops.furthest_point_sample`."""

    @staticmethod
    def forward(ctx: Any, points_xyz: Tensor, num_points: int) -> Tensor:
        """Indices (B, num_points) of points (B, N, 3), beginning with point 0."""
        chosen = ops.farthest_point_sample(points_xyz, num_points).int()
        ctx.mark_non_differentiable(chosen)
        return chosen

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[None, None]:
        """Indices have no gradient."""
        return None, None


class BallQuery:
    """`mmcv.ops.ball_query`; its stacked form, which no detector here uses, is refused."""

    @staticmethod
    def forward(
        ctx: Any,
        min_radius: float,
        max_radius: float,
        sample_num: int,
        xyz: Tensor,
        center_xyz: Tensor,
        xyz_batch_cnt: Tensor | None = None,
        center_xyz_batch_cnt: Tensor | None = None,
    ) -> Tensor:
        """Indices (B, M, sample_num) into points (B, N, 3) around centres (B, M, 3)."""
        _refuse_stacked("ball_query", xyz_batch_cnt)
        found = ops.ball_query(center_xyz, xyz, max_radius, sample_num, min_radius=min_radius).int()
        ctx.mark_non_differentiable(found)
        return found

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[None, ...]:
        """Indices have no gradient."""
        return (None,) * 7


class GatherPoints:
    """`mmcv.ops.gather_points`."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, indices: Tensor) -> Tensor:
        """Features (B, C, N) at indices (B, M): (B, C, M)."""
        ctx.indices, ctx.count = indices, features.shape[2]
        return _take(features, indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Every gradient goes back to where its value came from, and is added there."""
        return _put(grad, ctx.indices, ctx.count), None


class GroupingOperation:
    """`mmcv.ops.grouping_operation`; its stacked form, which no detector here uses, is refused."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        indices: Tensor,
        features_batch_cnt: Tensor | None = None,
        indices_batch_cnt: Tensor | None = None,
    ) -> Tensor:
        """Features (B, C, N) at indices (B, M, K): (B, C, M, K)."""
        _refuse_stacked("grouping_operation", features_batch_cnt)
        ctx.indices, ctx.count = indices, features.shape[2]
        return _take(features, indices.flatten(1)).unflatten(2, indices.shape[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Every gradient goes back to where its value came from, and is added there."""
        return _put(grad.flatten(2), ctx.indices.flatten(1), ctx.count), None, None, None


class ThreeNN:
    """`mmcv.ops.three_nn`."""

    @staticmethod
    def forward(ctx: Any, target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Distances and indices (B, N, 3) of the nearest of (B, M, 3) to every one of (B, N, 3).

        Where there are fewer than three, the rest is index 0 at an infinite distance.
        """
        found = min(3, source.shape[1])
        index = ops.knn(target, source, found)
        distance = (target.unsqueeze(2) - ops.gather(source, index)).square().sum(-1).sqrt()
        missing = (0, 3 - found)
        index = torch.nn.functional.pad(index, missing, value=0).int()
        distance = torch.nn.functional.pad(distance, missing, value=torch.inf)
        ctx.mark_non_differentiable(distance, index)
        return distance, index

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[None, None]:
        """As in mmcv, distances have no gradient."""
        return None, None


class ThreeInterpolate:
    """`mmcv.ops.three_interpolate`."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
        """Features (B, C, M) at indices (B, N, 3), summed with weights (B, N, 3): (B, C, N)."""
        ctx.indices, ctx.weight, ctx.count = indices, weight, features.shape[2]
        taken = _take(features, indices.flatten(1)).unflatten(2, indices.shape[1:])
        return (taken * weight.unsqueeze(1)).sum(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """As in mmcv, for the features alone."""
        spread = grad.unsqueeze(-1) * ctx.weight.unsqueeze(1)
        return _put(spread.flatten(2), ctx.indices.flatten(1), ctx.count), None, None


_FUNCTIONS = (
    ("furthest_point_sample", "FurthestPointSampling", FurthestPointSampling),
    ("ball_query", "BallQuery", BallQuery),
    ("gather_points", "GatherPoints", GatherPoints),
    ("group_points", "GroupingOperation", GroupingOperation),
    ("three_nn", "ThreeNN", ThreeNN),
    ("three_interpolate", "ThreeInterpolate", ThreeInterpolate),
)


def points_in_boxes_all(points: Tensor, boxes: Tensor) -> Tensor:
    """Which boxes hold which points.

    Args:
        points: (B, M, 3).
        boxes: (B, T, 7): bottom centre, sizes, heading.

    Returns:
        (B, M, T) int32: 1 where a point is in a box.
    """
    from mmcv.ops.points_in_boxes import points_in_boxes_cpu

    return points_in_boxes_cpu(points.cpu(), boxes.cpu()).to(points.device)


def rotate_iou_gpu_eval(boxes: Any, query_boxes: Any, criterion: int = -1, device_id: int = 0) -> Any:
    """Overlap of rotated rectangles, as mmdet3d's KITTI metric asks for it.

    Args:
        boxes: (N, 5): centre, sizes, angle (clockwise, as in KITTI's camera frame).
        query_boxes: (K, 5).
        criterion: -1 for the intersection over the union, 0 over the query's area, 1 over the box's area, else the area
            of the intersection.
        device_id: Ignored: there is no device.

    Returns:
        (N, K) float32.
    """
    from mmcv.ops import box_iou_rotated

    rows, columns = (torch.as_tensor(np.asarray(b, dtype=np.float32)).reshape(-1, 5) for b in (boxes, query_boxes))
    if not len(rows) or not len(columns):
        return np.zeros((len(rows), len(columns)), dtype=np.float32)
    if criterion == -1:
        overlap = box_iou_rotated(rows, columns, mode="iou", clockwise=False)
    elif criterion == 0:
        overlap = box_iou_rotated(columns, rows, mode="iof", clockwise=False).T
    else:
        overlap = box_iou_rotated(rows, columns, mode="iof", clockwise=False)
        if criterion != 1:
            overlap = overlap * (rows[:, 2] * rows[:, 3]).unsqueeze(1)
    return overlap.contiguous().numpy()


def _rotate_iou_module() -> ModuleType:
    module = ModuleType(ROTATE_IOU, "Stand-in for mmdet3d's module of this name, which is compiled for CUDA.")
    module.rotate_iou_gpu_eval = rotate_iou_gpu_eval  # type: ignore[attr-defined]
    return module


def _take(features: Tensor, indices: Tensor) -> Tensor:
    """(B, C, N) at (B, M): (B, C, M)."""
    return features.gather(2, _spread(indices, features.shape[1]))


def _put(grad: Tensor, indices: Tensor, count: int) -> Tensor:
    """Inverse of `_take`: what goes to one place is added up."""
    empty = grad.new_zeros(grad.shape[0], grad.shape[1], count)
    return empty.scatter_add(2, _spread(indices, grad.shape[1]), grad)


def _spread(indices: Tensor, channels: int) -> Tensor:
    return indices.long().unsqueeze(1).expand(-1, channels, -1)


def _refuse_stacked(name: str, counts: Tensor | None) -> None:
    if counts is not None:
        raise ValueError(f"mmcv's {name} on stacked clouds needs CUDA: there is no stand-in for it.")
