"""Hydra configs of point clouds: ``python -m frozenllm.pointcloud.train --cfg job`` shows them composed."""
