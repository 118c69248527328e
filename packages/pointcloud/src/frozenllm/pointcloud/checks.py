"""What ``frozenllm doctor`` tries of this package."""

from __future__ import annotations

import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch

from frozenllm.core.checkup import Check
from frozenllm.pointcloud.model import PointBERT

_BUILD = "build mmcv 2.1.0 with its operators as docs/pointcloud.md says, with torch older than 2.14"


def _host() -> str:
    model = PointBERT(
        num_classes=2, embed_dim=48, depth=1, num_heads=3, num_groups=4, group_size=8, llm="bundled"
    ).eval()
    with torch.no_grad():
        scores = model(torch.randn(1, 64, 3))
    assert scores.shape == (1, 2)
    return "a Point-BERT with the bundled block runs"


def _files() -> str:
    values = np.arange(6, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clouds.h5"
        with h5py.File(path, "w") as file:
            file["data"] = values
        with h5py.File(path) as file:
            if not (file["data"][:] == values).all():
                raise RuntimeError("a file is read back changed")
    return f"h5py {h5py.__version__} writes and reads"


def _operators() -> str:
    import mmcv
    from mmcv.ops import furthest_point_sample, nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)[1].tolist()
    if kept != [0, 2]:
        raise RuntimeError(f"nms keeps the boxes {kept} instead of 0 and 2")
    if not torch.cuda.is_available():
        return f"mmcv {mmcv.__version__}, nms runs on the CPU"
    points = torch.tensor([[[0.0, 0, 0], [0.1, 0, 0], [1, 0, 0]]], device="cuda")
    if furthest_point_sample(points, 2).tolist() != [[0, 2]]:
        raise RuntimeError("farthest point sampling on the GPU picks the wrong point")
    return f"mmcv {mmcv.__version__}, nms runs on the CPU, farthest point sampling on the GPU"


def _detectors() -> str:
    import mmdet3d
    import mmdet3d.models

    import frozenllm.pointcloud.detection.plugin  # noqa: F401

    return f"mmdet3d {mmdet3d.__version__} takes the frozen layer as a neck"


def _pages() -> str:
    import plotly
    from plotly.graph_objects import Figure, Scatter3d

    page = Figure(Scatter3d(x=[0], y=[0], z=[0])).to_html(include_plotlyjs=True)
    return f"plotly {plotly.__version__} makes a page of {len(page) / 1e6:.1f} MB"


CHECKS = (
    Check("host with the frozen layer", _host, "pip install --upgrade frozenllm-pointcloud"),
    Check("h5 files", _files, "pip install --force-reinstall h5py"),
    Check("[html] pages to turn", _pages, "pip install 'frozenllm-pointcloud[html]'", ("plotly",)),
    Check("[mmdet3d] mmcv's operators", _operators, _BUILD, ("mmcv",)),
    Check(
        "[mmdet3d] detectors",
        _detectors,
        f"pip install 'frozenllm-pointcloud[mmdet3d]'; before that, {_BUILD}",
        ("mmcv", "mmdet", "mmdet3d"),
    ),
)
