"""Train or evaluate a video classifier: the same as ``python -m frozenllm.video.train``."""

from frozenllm.video.train import main

if __name__ == "__main__":
    main()
