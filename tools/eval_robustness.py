"""Evaluate on ImageNet, -C, -A, -R and -Sketch: the same as ``python -m frozenllm.vision2d.robustness``."""

from frozenllm.vision2d.robustness import main

if __name__ == "__main__":
    main()
