"""What host, frozen block and random block attend to: the same as ``python -m frozenllm.vision2d.filtering``."""

from frozenllm.vision2d.filtering import main

if __name__ == "__main__":
    main()
