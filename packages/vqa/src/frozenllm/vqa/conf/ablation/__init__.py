"""Config group ``ablation``."""
