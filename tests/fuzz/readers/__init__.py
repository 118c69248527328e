"""Every reader of outside files, a file for each package."""

from registry import READERS

from readers import core, motion, pointcloud, scenes, video, vision2d, vqa  # noqa: F401 - they register themselves

__all__ = ["READERS"]
