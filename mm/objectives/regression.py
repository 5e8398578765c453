"""Regression: numbers that belong to an image, a text, or the two together."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jaxtyping import Float

from mm import registry
from mm.config import Positive, Scale
from mm.models.inputs import Read
from mm.models.multimodal import Multimodal
from mm.objectives.base import Loss, Objective
from mm.objectives.heads import Of, PooledHead
from mm.objectives.views import Views


@registry.register("objective", "regression")
class Regression(Objective):
    """Squared error of batch["target"], float32 [b, size], from a tower's or the fusion's vector.

    `mean` and `deviation` are about those of the targets: the head tells (target - mean) /
    deviation, of which the loss is half the square, "squared", or "huber", which grows linearly
    beyond 1 (Huber 1964). `size` numbers an example; the loss is their mean. Metric: the mean
    absolute error, in units of the target.
    """

    def __init__(
        self,
        *,
        of: Of = "image",
        kind: Literal["squared", "huber"] = "squared",
        mean: float = 0.0,
        deviation: Scale = 1.0,
        size: Positive = 1,
        model: Multimodal,
        rngs: nnx.Rngs,
    ):
        self.head = PooledHead("regression", of, size, model=model, rngs=rngs)
        self.uses = self.head.uses
        self.kind, self.mean, self.deviation = kind, mean, deviation
        self.reads = (Read("target", (size,), "float32"),)

    def __call__(self, views: Views, rng: Array) -> Loss:
        target = views.batch["target"]
        error = (self.estimate(views) - target) / self.deviation
        losses = optax.l2_loss(error) if self.kind == "squared" else optax.huber_loss(error)
        away = self.deviation * jnp.abs(error).mean()
        return Loss(losses.mean(), {"absolute_error": jax.lax.stop_gradient(away)})

    def estimate(self, views: Views) -> Float[Array, "b o"]:
        """In units of the target, as the evaluator reads it."""
        return self.mean + self.deviation * self.head(views)
