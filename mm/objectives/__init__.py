"""Objectives: what a step minimises. One file an objective; each is registered by name."""

from mm.objectives import (  # noqa: F401  (registers them)
    alignment,
    captioning,
    contrastive,
    distillation,
    masked_image,
    masked_text,
    matching,
    momentum,
    self_distillation,
    self_supervision,
    teacher,
    tied,
)
from mm.objectives.base import Buffer, Loss, Objective
from mm.objectives.views import Views

__all__ = ["Buffer", "Loss", "Objective", "Views"]
