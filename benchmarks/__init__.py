"""Measurements against other systems. Run them from the repository's root."""
