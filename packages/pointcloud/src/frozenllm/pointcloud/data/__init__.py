"""ScanObjectNN and ModelNet40, in the formats that they are published in."""

from frozenllm.pointcloud.data.clouds import PARTS, PointClouds
from frozenllm.pointcloud.data.modelnet import modelnet40
from frozenllm.pointcloud.data.scanobjectnn import VARIANTS, scanobjectnn

__all__ = ["PARTS", "VARIANTS", "PointClouds", "modelnet40", "scanobjectnn"]
