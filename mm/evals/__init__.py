"""Evaluators, one file each; importing this registers them."""

from mm.evals import losses, probes, retrieval, zero_shot  # noqa: F401
