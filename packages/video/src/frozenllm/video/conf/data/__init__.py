"""Config group ``data``."""
