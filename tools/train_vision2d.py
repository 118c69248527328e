"""Train or evaluate an image classifier: the same as ``python -m frozenllm.vision2d.train``."""

from frozenllm.vision2d.train import main

if __name__ == "__main__":
    main()
