"""Fusions: how image and text tokens meet. One file a fusion; each is registered by name."""

from mm.models.fusion import cross
from mm.models.fusion.base import Fused, Fusion

__all__ = ["Fused", "Fusion", "cross"]
