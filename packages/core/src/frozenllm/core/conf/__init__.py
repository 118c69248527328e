"""Config files that every domain shares; Hydra finds them as ``pkg://frozenllm.core.conf``."""
