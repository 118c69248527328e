"""Train or evaluate a motion forecasting model: the same as ``python -m frozenllm.motion.train``."""

from frozenllm.motion.train import main

if __name__ == "__main__":
    main()
