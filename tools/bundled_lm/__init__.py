"""Parts of `pretrain_lm.py`, which trains the language model that ships with `frozenllm-core`."""
