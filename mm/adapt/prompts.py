"""Learned vectors that a tower reads beside its input."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from mm.adapt.base import Arrays
from mm.models.layers import Linear, param


class Prompts(nnx.Module):
    """Called, it gives `count` vectors [count, width], or for each layer as many of its own.

    With `hidden` they are what two layers, `hidden` wide and with tanh between, make of the table:
    easier to train, and not needed after it (prefix tuning: Li and Liang 2021, section 4.3).
    """

    def __init__(
        self,
        count: int,
        width: int,
        *,
        layers: int | None = None,
        hidden: int | None = None,
        rngs: nnx.Rngs,
    ):
        lead, names = ((), ()) if layers is None else ((layers,), ("layers",))
        init = jax.nn.initializers.normal(0.02)
        self.table = param(rngs, init, (*lead, count, width), (*names, None, "embed"))
        up, down = ("embed", "mlp"), ("mlp", "embed")
        self.up = None if hidden is None else Linear((width,), (hidden,), up, rngs=rngs)
        self.down = None if hidden is None else Linear((hidden,), (width,), down, rngs=rngs)
        self.count, self.deep = count, layers is not None

    def __call__(self) -> Float[Array, "*layers p d"]:
        table = self.table[...]
        return table if self.up is None else self.down(jnp.tanh(self.up(table)))


def fold_prompts(params: Arrays, path: str, spec: Mapping) -> tuple[dict[str, np.ndarray], Mapping]:
    """The vectors themselves in place of what makes them."""
    if spec.get("hidden") is None:
        return dict(params), spec
    made = dict(params)
    x = made.pop(f"{path}/table").astype(np.float64)
    for part in ("up", "down"):
        kernel, bias = (made.pop(f"{path}/{part}/{name}") for name in ("kernel", "bias"))
        x = (np.tanh(x) if part == "down" else x) @ kernel + bias
    made[f"{path}/table"] = x.astype(np.float32)
    return made, {**spec, "hidden": None}
