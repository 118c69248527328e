"""What ``frozenllm doctor`` tries of this package."""

from __future__ import annotations

import importlib
import io
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import torch

from frozenllm.core.checkup import Check
from frozenllm.vqa.meter import build_vqa


def _host() -> str:
    model = build_vqa(image_encoder="toy", text_encoder="toy", answers=2, llm="bundled").eval()
    words = torch.ones(1, 4, dtype=torch.long)
    there = torch.ones(1, 4, dtype=torch.bool)
    size = model.trunk.image_encoder.image_size
    with torch.no_grad():
        scores = model(torch.zeros(1, 3, size, size), words, there)
    assert scores.shape == (1, 2)
    return "a METER with the bundled block runs on the toy encoders"


def _tables() -> str:
    table = pa.table({"image": [b"1", b"2"], "questions": [["a"], ["b", "c"]]})
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "part.arrow")
        with pa.OSFile(path, "wb") as sink, pa.RecordBatchFileWriter(sink, table.schema) as writer:
            writer.write_table(table)
        if not pa.ipc.RecordBatchFileReader(path).read_all().equals(table):
            raise RuntimeError("an arrow file is read back changed")
    return f"pyarrow {pa.__version__} writes and reads"


def _page() -> str:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio

    with gradio.Blocks(analytics_enabled=False) as page:
        gradio.Textbox(label="Question")
    assert page.blocks
    return f"gradio {gradio.__version__} builds a page"


def _scans() -> str:
    import numpy as np
    import plyfile

    points = np.zeros(2, dtype=[("x", "f4"), ("y", "f4"), ("z", "f4")])
    file = io.BytesIO()
    plyfile.PlyData([plyfile.PlyElement.describe(points, "vertex")]).write(file)
    file.seek(0)
    if len(plyfile.PlyData.read(file)["vertex"].data) != 2:
        raise RuntimeError("a ply file is read back changed")
    importlib.import_module("frozenllm.pointcloud")  # a package of its own, which the extra brings
    return "plyfile writes and reads, frozenllm-pointcloud is there"


CHECKS = (
    Check("host with the frozen layer", _host, "pip install --upgrade frozenllm-vqa"),
    Check("METER's files (arrow)", _tables, "pip install --force-reinstall pyarrow"),
    Check("[app] page to ask questions on", _page, "pip install 'frozenllm-vqa[app]'", ("gradio",)),
    Check(
        "[scenes] questions about 3D scenes",
        _scans,
        "pip install 'frozenllm-vqa[scenes]'",
        ("plyfile", "frozenllm.pointcloud"),
    ),
)
