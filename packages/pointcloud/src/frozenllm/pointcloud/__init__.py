"""Point cloud classifiers and 3D detectors with a frozen language-model block.

Classification needs neither mmcv nor mmdet3d. Where mmdet3d is installed, `frozenllm.pointcloud.mmdet3d` registers the
classifier and its data there, and `frozenllm.pointcloud.detection` puts frozen layers into detectors.
"""

from frozenllm.pointcloud.model import PointBERT
from frozenllm.pointcloud.official import load_official_checkpoint, load_pretrained_host

__all__ = ["PointBERT", "load_official_checkpoint", "load_pretrained_host"]
