"""Config group ``model``."""
