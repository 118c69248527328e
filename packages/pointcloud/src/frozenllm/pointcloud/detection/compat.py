"""A name that mmdet3d 1.4 uses and numpy 1.24 to 1.26 do not have."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np

_MODULE = "mmdet3d.datasets.transforms.dbsampler"


def install() -> None:
    """Give mmdet3d's database sampler (KITTI's pasted objects) its ``np.long`` where numpy has none.

    Only that module sees it: numpy itself stays as it is.
    """
    if int(np.__version__.split(".")[0]) >= 2:  # has it again
        return
    module: Any = importlib.import_module(_MODULE)
    if module.np is np:
        module.np = _WithLong(np.__name__)


class _WithLong(ModuleType):
    long = np.int64

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)
