"""Teachers: a second set of parameters that sees the batch without gradient (`Views.teacher`)."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax import Array

from mm import registry
from mm.config import Rate
from mm.models.multimodal import Multimodal


@registry.register("teacher", "average")
class Average:
    """The exponential moving average of all parameters, of the model and of the objectives.

    After each step it is decay * average + (1 - decay) * parameters, in float32 (MoCo: He et al.
    2020, eq. 2; mean teacher: Tarvainen and Valpola 2017). evaluate: evaluations and embeddings are
    the average's (Polyak and Juditsky 1992), and no objective needs to ask for it.
    """

    follows = True

    def __init__(self, *, decay: Rate, evaluate: bool = False):
        self.decay, self.evaluate = decay, evaluate

    def update(self, average: Any, params: Any) -> Any:
        """The average after a step that ended with `params`."""
        return jax.tree.map(lambda a, p: self.decay * a + (1 - self.decay) * p, average, params)


@registry.register("teacher", "checkpoint")
class Frozen:
    """A model of another run: `model` is its config.model, `step` a checkpoint (None: the latest).

    It is read when the run begins, and then part of the run's own checkpoints.
    """

    follows = evaluate = False

    def __init__(self, *, workdir: str, model: Mapping, step: int | None = None):
        self.workdir, self.model, self.step = workdir, model, step

    def make(self, key: Array) -> Multimodal:
        """The model, with fresh parameters."""
        where = "config.teacher.model"
        return registry.call(Multimodal, self.model, where, rngs=nnx.Rngs(params=key))
