"""Config group ``loss``."""
