"""Objectives: what a step minimises. One file an objective; each is registered by name."""

from mm.objectives import contrastive
from mm.objectives.base import Loss, Objective
from mm.objectives.views import Views

__all__ = ["Loss", "Objective", "Views", "contrastive"]
