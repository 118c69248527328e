"""Train or evaluate a 3D detector: the same as ``python -m frozenllm.pointcloud.detection.train``."""

from frozenllm.pointcloud.detection.train import main

if __name__ == "__main__":
    main()
