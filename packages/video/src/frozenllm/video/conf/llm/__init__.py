"""Config group ``llm``."""
