"""Evaluators, one file each; importing this registers them."""

from mm.evals import losses, retrieval  # noqa: F401
