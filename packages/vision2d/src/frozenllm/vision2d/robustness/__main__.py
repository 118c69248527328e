"""``python -m frozenllm.vision2d.robustness``."""

from frozenllm.vision2d.robustness.run import main

if __name__ == "__main__":
    main()
