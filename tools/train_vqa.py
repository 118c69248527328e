"""Train or evaluate a vision-language model: the same as ``python -m frozenllm.vqa.train``."""

from frozenllm.vqa.train import main

if __name__ == "__main__":
    main()
