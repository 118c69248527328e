"""Training and evaluation of point cloud classifiers: ``python -m frozenllm.pointcloud.train [overrides]``.

Without arguments it trains a small Point-BERT on toy scans of shapes, alone and with the frozen bundled block, on a CPU
in about a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from frozenllm.core.toy_folder import named_root
from frozenllm.core.training import DATASETS, MODELS, TRANSFORMS, call_with_options, compare_toys, run_tool
from frozenllm.pointcloud.data import PointClouds, modelnet40, scanobjectnn
from frozenllm.pointcloud.model import PointBERT
from frozenllm.pointcloud.official import load_pretrained_host
from frozenllm.pointcloud.task import PointCloudTask
from frozenllm.pointcloud.toy import write_modelnet, write_scanobjectnn
from frozenllm.pointcloud.transforms import PointAugment

CONFIG = "frozenllm.pointcloud.conf"
METRIC = "accuracy/top1"


def build_point_bert(*, llm: Mapping[str, Any] | None = None, host: str | None = None, **options: Any) -> nn.Module:
    """The model of the config group ``model``.

    Args:
        llm: The config group ``llm``; None for the host alone.
        host: Point-BERT's pre-training checkpoint (``Point-BERT.pth``), see
            `frozenllm.pointcloud.load_pretrained_host`; None for a random start.
        **options: Arguments of `PointBERT`.

    Raises:
        ValueError: An option is unknown, or the checkpoint does not fit.
    """
    model = call_with_options(PointBERT, options, "PointBERT", llm=llm)
    if host is not None:
        load_pretrained_host(model, host)
    return model


def toy_scanobjectnn(root: str | None, variant: str, split: str, **options: Any) -> PointClouds:
    """Toy scans as `scanobjectnn`, written first where they are missing; a ``root`` of None is in the user's cache."""
    return scanobjectnn(str(write_scanobjectnn(named_root(root))), variant, split, **options)


def toy_modelnet(root: str | None, split: str, *, points: int = 1024, **options: Any) -> PointClouds:
    """Toy shapes as `modelnet40`, written first where they are missing; a ``root`` of None is in the user's cache."""
    return modelnet40(str(write_modelnet(named_root(root), points=points)), split, points=points, **options)


MODELS.register_module("point_bert", module=build_point_bert)
MODELS.register_module("PointCloudTask", module=PointCloudTask)
DATASETS.register_module("scanobjectnn", module=scanobjectnn)
DATASETS.register_module("modelnet40", module=modelnet40)
DATASETS.register_module("shapes", module=toy_scanobjectnn)
DATASETS.register_module("shapes_modelnet", module=toy_modelnet)
TRANSFORMS.register_module("point_augment", module=PointAugment)


def toy() -> None:
    """The host alone beside the host with the frozen layer, on the toy data."""
    for result in compare_toys(CONFIG, ["recipe=shapes"], METRIC):
        print(f"test, last epoch: {result.runs[0].test[METRIC]:.2f} {result.arm}")


main = partial(run_tool, CONFIG, toy)
"""The command line; takes overrides in Hydra's grammar, or None for the process's. Without any, `toy` runs."""


if __name__ == "__main__":
    main()
