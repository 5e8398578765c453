"""Evaluators, one file each; importing this registers them."""

from mm.evals import retrieval  # noqa: F401
