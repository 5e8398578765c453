"""Optimizers: an optax chain, learning-rate schedules, and regex lists over parameter paths."""

from mm.optim import optimizer, schedules

__all__ = ["optimizer", "schedules"]
