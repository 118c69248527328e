"""Frozen language-model layers inside mmdet3d's detectors.

Importing this package imports neither mmdet3d nor mmcv. Configs name `frozenllm.pointcloud.detection.plugin` under
``custom_imports``; that module registers the parts in mmdet3d's and mmengine's registries.
"""

from __future__ import annotations

from pathlib import Path

from frozenllm.pointcloud.detection.neck import FrozenLLMNeck
from frozenllm.pointcloud.detection.occupancy import OccupancyBackbone

__all__ = ["FrozenLLMNeck", "OccupancyBackbone", "config_path", "configs"]

_CONFIGS = Path(__file__).parent / "configs"


def configs() -> list[str]:
    """Names of the configs that ship with this package."""
    return sorted(path.stem for path in _CONFIGS.glob("*.py"))


def config_path(name: str) -> Path:
    """The file of a shipped config, for mmengine's ``Config.fromfile``.

    Args:
        name: One of `configs`, such as ``"votenet_scannet_frozenllm"``.

    Raises:
        ValueError: There is no such config.
    """
    path = _CONFIGS / f"{name}.py"
    if not path.is_file():
        raise ValueError(f"There is no config {name!r}; there are {', '.join(configs())}, or give a .py file.")
    return path
