"""A config, which the stand-in for main.py does not read."""
