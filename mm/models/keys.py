"""Random keys, one an example: what is drawn for it depends on no neighbour in the batch.

So a device and a micro-batch draw for their rows what the whole batch would. All these functions
take typed keys [b] and work on each alone; without keys (None, evaluation) nothing is drawn.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

Keys = Key[Array, "b"]


def example_keys(key: Key[Array, ""], batch_size: int) -> Keys:
    """A key for every row of the global batch."""
    rows = jnp.arange(batch_size, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def fold_in(keys: Keys, number: int | Int[Array, ""]) -> Keys:
    """Other keys, told apart from those of other numbers."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def split(keys: Keys | None, count: int = 2) -> Key[Array, "count b"] | tuple[None, ...]:
    """`count` independent sets of keys; of no keys, as many None."""
    if keys is None:
        return (None,) * count
    return jax.vmap(partial(jax.random.split, num=count), out_axes=1)(keys)


def bernoulli(
    keys: Keys, share: float | Float[Array, ""], shape: tuple[int, ...]
) -> Bool[Array, "b ..."]:
    """True with probability `share`; `shape` is an example's."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, share, shape))(keys)


def uniform(keys: Keys, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Uniform on [0, 1); `shape` is an example's."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
