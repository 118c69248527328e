"""Train or evaluate a point cloud classifier: the same as ``python -m frozenllm.pointcloud.train``."""

from frozenllm.pointcloud.train import main

if __name__ == "__main__":
    main()
