"""What to say where mmdet3d, or mmcv with its operators, is missing."""

from __future__ import annotations

import importlib

RECIPE = (
    "pip install 'frozenllm-pointcloud[mmdet3d]' needs mmcv 2.1.0 built from source beforehand: "
    "pip install 'setuptools<81' wheel ninja psutil packaging 'numpy<2', then "
    "MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps mmcv==2.1.0, with torch older than 2.14 installed"
)
"""pip builds mmcv in an isolated environment: without setuptools' pkg_resources it stops, without torch it silently
leaves the operators out."""


def require_mmdet3d() -> None:
    """Import mmdet3d and mmcv's operators.

    Raises:
        ImportError: One of them is missing or does not fit; the sentence says how to install them.
    """
    for module in ("mmcv.ops", "mmdet3d"):
        try:
            importlib.import_module(module)
        except (ImportError, AssertionError) as error:  # mmdet3d asserts the versions of mmcv and mmdet
            raise ImportError(
                f"3D detectors cannot be used, because {module} is missing ({error}): {RECIPE}."
            ) from error
