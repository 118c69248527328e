"""What ``frozenllm doctor`` tries of this package."""

from __future__ import annotations

import importlib.metadata
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

from frozenllm.core.checkup import Check
from frozenllm.core.film import write_film
from frozenllm.motion.models import VectorNet
from frozenllm.motion.testing import random_inputs


def _host() -> str:
    model = VectorNet(horizon=5, modes=2, llm="bundled").eval()
    with torch.no_grad():
        trajectories = model(**random_inputs(batch=1))["trajectories"]
    assert trajectories.shape == (1, 2, 5, 2)
    return "a VectorNet with the bundled block runs"


def _av2() -> str:
    from av2.datasets.motion_forecasting.eval.metrics import compute_fde
    from av2.map.map_api import ArgoverseStaticMap  # noqa: F401

    line = np.cumsum(np.ones((1, 4, 2)), axis=1)
    if compute_fde(line, line[0] + np.array([3.0, 4.0])).tolist() != [5.0]:
        raise RuntimeError("the endpoint error of av2 is not the distance of the endpoints")
    return f"av2 {importlib.metadata.version('av2')}: map API and metrics"


def _tables() -> str:
    table = pa.table({"timestep": [0, 1], "position_x": [0.5, 1.5]})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scenario.parquet"
        pa.parquet.write_table(table, path)
        if not pa.parquet.read_table(path).equals(table):
            raise RuntimeError("a parquet file is read back changed")
    return f"pyarrow {pa.__version__} writes and reads"


def _films() -> str:
    with tempfile.TemporaryDirectory() as folder:
        write_film([np.zeros((16, 16, 3), np.uint8)] * 3, Path(folder) / "film.mp4")
    return "a film of three pictures is written"


def _submissions() -> str:
    with tempfile.TemporaryDirectory() as folder, h5py.File(Path(folder) / "submission.h5", "w") as file:
        file["argoverse1"] = np.zeros((1, 4))
    return f"h5py {h5py.__version__} writes"


CHECKS = (
    Check("host with the frozen layer", _host, "pip install --upgrade frozenllm-motion"),
    Check("av2", _av2, "pip install --upgrade 'av2>=0.3.6,<0.4'"),
    Check("scenarios (parquet)", _tables, "pip install --force-reinstall pyarrow"),
    Check("films", _films, "pip install --upgrade av"),
    Check("submissions to Argoverse 1", _submissions, "pip install --force-reinstall h5py"),
)
