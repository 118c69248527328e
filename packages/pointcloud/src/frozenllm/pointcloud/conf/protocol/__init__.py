"""Config group ``protocol``."""
