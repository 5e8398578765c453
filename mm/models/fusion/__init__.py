"""Fusions: how image and text tokens meet. One file a fusion; each is registered by name."""

import importlib
import pkgutil

from mm.models.fusion.base import Fused, Fusion

__all__ = ["Fused", "Fusion"]

for _module in pkgutil.iter_modules(__path__):  # so that a new file is all a new fusion needs
    importlib.import_module(f"{__name__}.{_module.name}")
