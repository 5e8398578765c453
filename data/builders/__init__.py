"""Data sets that we prepare ourselves."""
