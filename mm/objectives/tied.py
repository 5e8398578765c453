"""Soft parameter sharing: two parts of the model are pulled towards each other."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from mm import registry
from mm.config import BadInput
from mm.models.multimodal import Multimodal
from mm.objectives.base import Loss, Objective
from mm.objectives.views import Views


@registry.register("objective", "tied")
class Tied(Objective):
    """||a - b||^2, summed over the parameters of two parts of equal shapes (Duong et al. 2015).

    `one` and `other` are paths in the model, as "image/encoder/blocks" and "text/encoder/blocks".
    Hard sharing is `Multimodal(share=)`. Metrics: `distance` is ||a - b||; `relative_distance`, in
    units of sqrt(||a||^2 + ||b||^2), is about 1 for parts that have nothing to do with each other.
    """

    def __init__(self, *, one: str, other: str, model: Multimodal, rngs: nnx.Rngs):
        self.one, self.other = one, other
        first, second = (
            {path: x.shape for path, x in parameters(model, part).items()} for part in (one, other)
        )
        for part, shapes in ((one, first), (other, second)):
            if not shapes:
                raise BadInput(f"{part!r}: the model has no parameters of its own there")
        if one == other:
            raise BadInput(f"one and other are both {one!r}; name two parts")
        if first != second:
            path = min(p for p in first.keys() | second.keys() if first.get(p) != second.get(p))
            raise BadInput(
                f"{one!r} and {other!r} differ at {path or 'their shapes'!r}: {first.get(path)} "
                f"and {second.get(path)}; name parts of equal shapes"
            )

    def __call__(self, views: Views, rng: Array) -> Loss:
        first, second = (parameters(views.model, part) for part in (self.one, self.other))
        value = sum(jnp.square(first[path] - second[path]).sum() for path in first)
        size = sum(jnp.square(x).sum() for part in (first, second) for x in part.values())
        metrics = {
            "distance": jnp.sqrt(value),
            "relative_distance": jnp.sqrt(value / jnp.maximum(size, 1e-12)),
        }
        return Loss(value, jax.lax.stop_gradient(metrics))


def parameters(model: nnx.Module, part: str) -> dict[str, Array]:
    """The parameters at the path `part` and below, by their paths from there."""
    found = {}
    for keys, variable in nnx.state(model, nnx.Param).flat_state():
        path = "/".join(map(str, keys))
        if path == part or path.startswith(f"{part}/"):
            found[path[len(part) :].lstrip("/")] = variable[...]
    return found
