"""Its config files."""
