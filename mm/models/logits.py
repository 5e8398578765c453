"""Logits of words or codes, not multiplied out: of a large vocabulary the whole of them, and their
gradient, would be the largest arrays of a step."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from mm.sharding.parameters import gather

AXES = ("embed", "vocab")  # of the kernel


class Logits(NamedTuple):
    """x @ kernel + bias, in float32 at least."""

    x: Float[Array, "*rows d"]
    kernel: Float[Array, "d v"]
    bias: Float[Array, "v"] | None = None

    def whole(self) -> Float[Array, "*rows v"]:
        """All of them."""
        x = self.x.reshape(-1, self.x.shape[-1])
        y = multiply(x, gather(self.kernel.astype(x.dtype), AXES), self.bias)
        return y.reshape(*self.x.shape[:-1], -1)


def multiply(
    x: Float[Array, "r d"], kernel: Float[Array, "d v"], bias: Float[Array, "v"] | None
) -> Float[Array, "r v"]:
    """x @ kernel + bias: products in the dtype of x, their sums in float32 at least."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = jnp.matmul(x, kernel, preferred_element_type=wide)
    return y if bias is None else y + bias.astype(wide)
