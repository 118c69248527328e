"""Make Something-Something V2 ready for training: the same as ``python -m frozenllm.video.prepare``."""

from frozenllm.video.prepare import main

if __name__ == "__main__":
    main()
