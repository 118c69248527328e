"""Config group ``task``."""
