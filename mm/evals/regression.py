"""How far from the truth the head of `regression` is."""

from typing import Any

import numpy as np
from etils import epath
from jax import Array

from mm import registry
from mm.config import Positive, Share
from mm.evals.base import Model
from mm.evals.pool import pool_of
from mm.objectives.combine import System
from mm.objectives.views import Views
from mm.report.outcomes import Outcome


@registry.register("evaluator", "regression")
class Regression:
    """Errors over all of `source`, by the first objective that tells numbers.

    max_bad_share: of broken examples, which are left out.
    """

    needs = ("estimate",)
    reads = ("image", "text", "text_mask", "entities", "target")

    def __init__(
        self,
        *,
        source: Any,
        preprocess: Any,
        batch_size: Positive,
        max_bad_share: Share = 0.01,
    ):
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.max_bad_share = max_bad_share

    def run(self, model: Model, picture: epath.Path | None = None) -> dict[str, float]:
        """Returns "absolute_error" and "squared_error", means over examples and their numbers, and
        "r2": what share of the variance of the targets is told, the mean over their numbers."""
        pool = pool_of(self, model, model.apply(estimate))
        found, target = (pool[name].astype(np.float64) for name in ("found", "target"))
        error = found - target
        outcomes = {
            "absolute_error": Outcome(pool["id"], np.abs(error).mean(1)),
            "squared_error": Outcome(pool["id"], (error**2).mean(1)),
            "r2": Outcome(pool["id"], np.concatenate([target, found], axis=1), "r2"),
        }
        return model.metrics(outcomes) | {"examples": float(len(error))}


def estimate(system: System, views: Views) -> dict[str, Array]:
    objective = system.first("estimate")
    return {"found": objective.estimate(views), "target": views.batch["target"]}
