"""Config group ``recipe``."""
