"""The scene encoder: mmdet3d's VoteNet, its backbone, votes, proposals, losses and all, from its own config.

mmdet3d's loss weights for ScanNet are those of SQA3D's code (vote 1, objectness 0.5, box 1, classes 0.1) times its
factor of 10, so the two agree term by term.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frozenllm.vqa.scenes.classes import MEAN_SIZES
from frozenllm.vqa.scenes.extra import require

CONFIG = "votenet/votenet_8xb8_scannet-3d.py"
"""mmdet3d's name of the config that everything starts from."""


class SceneDetector(nn.Module):
    """VoteNet, and what its proposals have to say.

    Args:
        mean_sizes: Mean size (x, y, z) in metres of each class of objects, which boxes are measured against.
        in_channels: Channels of a point beside its coordinates: colour (3) and height above the floor (1).
        overrides: Changes to mmdet3d's config of the model, nested as it is.
        threshold: Probability of being an object from which on a proposal counts. SQA3D's code takes the likelier of
            the two classes, which is 0.5.

    Attributes:
        width: Channels of a proposal.

    Raises:
        ImportError: The extra ``[scenes]`` is missing.
        ValueError: An override does not fit mmdet3d's config.
    """

    def __init__(
        self,
        mean_sizes: Sequence[Sequence[float]] = MEAN_SIZES,
        *,
        in_channels: int = 4,
        overrides: Mapping[str, Any] | None = None,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold is a probability below 1, not {threshold}.")
        require("frozenllm.pointcloud")
        importlib.import_module("frozenllm.pointcloud.detection.plugin")  # stand-ins for CPUs; says what is missing
        import mmdet3d.models  # noqa: F401 - registers VoteNet's parts
        from mmdet3d.registry import MODELS
        from mmengine.config import ConfigDict
        from mmengine.registry import DefaultScope

        config = votenet_config(mean_sizes, in_channels)
        _merge(config, dict(overrides or {}))
        settings = {"train_cfg": config["train_cfg"], "test_cfg": config["test_cfg"]}
        try:
            # Named as in mmdet3d's detector, so that the weights of one fit.
            with warnings.catch_warnings(), DefaultScope.overwrite_default_scope("mmdet3d"):  # the engine has its own
                warnings.filterwarnings("ignore", "Unnecessary conv bias")  # mmcv, of mmdet3d's own config
                self.backbone = MODELS.build(ConfigDict(config["backbone"]))
                self.bbox_head = MODELS.build(ConfigDict(config["bbox_head"], **settings))
        except (TypeError, AssertionError) as error:
            said = str(error) or "sizes that do not go together"  # of most of its assertions nothing
            raise ValueError(f"mmdet3d cannot build VoteNet from model.detector ({said}).") from error
        self.in_channels = in_channels
        self.threshold = threshold
        self.num_classes: int = config["bbox_head"]["num_classes"]
        self.width: int = config["bbox_head"]["vote_aggregation_cfg"]["mlp_channels"][-1]

    @torch.compiler.disable  # mmcv's operators are no business of the compiler's
    def forward(self, points: Tensor) -> dict[str, Tensor]:
        """Proposals of clouds.

        Args:
            points: (B, P, 3 + in_channels) float32, coordinates first, z up.

        Returns:
            mmdet3d's predictions by name, ``aggregated_features`` (B, width, K), ``obj_scores`` (B, K, 2),
            ``center`` (B, K, 3) and others among them.

        Raises:
            ValueError: The points have another shape.
        """
        if points.ndim != 3 or points.shape[2] != 3 + self.in_channels:
            raise ValueError(
                f"Points must have shape (batch, points, {3 + self.in_channels}), not {tuple(points.shape)}."
            )
        points = points.float()
        with torch.autocast(points.device.type, enabled=False):  # distances need float32
            return self.bbox_head(self.backbone(points))

    def counts(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Which proposals are objects, (B, K) bool; where none of a scene is, all of them.

        SQA3D's code masks scores with a large negative number, which comes to the same in a scene without objects:
        equal scores everywhere.
        """
        objects = predictions["obj_scores"].detach().float().softmax(-1)[..., 1] > self.threshold
        return objects | ~objects.any(dim=1, keepdim=True)

    def boxes(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Boxes of the proposals, (B, K, 6): centre and size in metres."""
        return self.bbox_head.bbox_coder.decode(predictions)[..., :6]

    def losses(
        self, points: Tensor, predictions: Mapping[str, Tensor], targets: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """mmdet3d's losses, weighted as its config says.

        Args:
            points: As for `forward`.
            predictions: What it gave.
            targets: ``boxes`` (list of (K, 6): centre and size), ``classes`` (list of (K,) int64), ``semantic`` (B, P)
                int64, negative where a point is on no object, and ``instance`` (B, P) int64.
        """
        from mmdet3d.structures import DepthInstance3DBoxes
        from mmengine.structures import InstanceData

        objects = []
        for boxes, classes in zip(targets["boxes"], targets["classes"], strict=True):
            shaped = DepthInstance3DBoxes(boxes.float(), box_dim=6, with_yaw=False, origin=(0.5, 0.5, 0.5))
            objects.append(InstanceData(bboxes_3d=shaped, labels_3d=classes.long()))
        nothing = targets["semantic"] < 0
        semantic = targets["semantic"].masked_fill(nothing, self.num_classes)  # mmdet3d's number for it
        instance = targets["instance"].masked_fill(nothing, int(targets["instance"].max()) + 1)
        return self.bbox_head.loss_by_feat(
            list(points.float()), dict(predictions), objects, list(semantic), list(instance)
        )


def votenet_config(mean_sizes: Sequence[Sequence[float]] = MEAN_SIZES, in_channels: int = 4) -> dict[str, Any]:
    """The model part of mmdet3d's config, for other classes and channels.

    Proposals are sampled from the votes in evaluation too, as in SQA3D's code; mmdet3d samples seeds there.
    """
    from mmengine.hub import get_config

    require("mmdet3d")  # or mmengine would call pip by itself, of the first Python on the path
    config: dict[str, Any] = get_config(f"mmdet3d::{CONFIG}").model.to_dict()
    head = config["bbox_head"]
    head["num_classes"] = head["bbox_coder"]["num_sizes"] = len(mean_sizes)
    head["bbox_coder"]["mean_sizes"] = [list(map(float, size)) for size in mean_sizes]
    config["backbone"]["in_channels"] = 3 + in_channels
    config["test_cfg"]["sample_mode"] = "vote"
    return config


def _merge(config: dict[str, Any], changes: dict[str, Any], path: str = "model.detector") -> None:
    """Put nested changes into a nested config, in place.

    Raises:
        ValueError: The config has no such key.
    """
    for key, value in changes.items():
        if key not in config:
            raise ValueError(f"mmdet3d's VoteNet has no {path}.{key}; it has {', '.join(sorted(map(str, config)))}.")
        if isinstance(value, Mapping) and isinstance(config[key], dict):
            _merge(config[key], dict(value), f"{path}.{key}")
        else:
            config[key] = value
