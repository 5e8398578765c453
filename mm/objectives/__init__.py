"""Objectives: what a step minimises. One file an objective; each is registered by name."""

import importlib
import pkgutil

from mm.objectives.base import Buffer, Loss, Objective
from mm.objectives.views import Views

__all__ = ["Buffer", "Loss", "Objective", "Views"]

for _module in pkgutil.iter_modules(__path__):  # so that a new file is all an objective needs
    importlib.import_module(f"{__name__}.{_module.name}")
