"""Sums over the tiles of a matrix of logits that is never held whole."""

import jax
import jax.numpy as jnp
from jax import Array

Sums = tuple[Array, ...]  # (greatest logit, sum of exponentials relative to it, weighted sums...)


def products(a: Array, b: Array) -> Array:
    """a @ b in float32, also on a TPU, which would round its operands to bfloat16."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def nothing(like: Array, weighted: int = 0) -> Sums:
    """The sums before the first tile, one a row of `like`."""
    zero = jnp.zeros(len(like), like.dtype)
    return zero - jnp.inf, *[zero] * (1 + weighted)


def grow(sums: Sums, logits: Array, *values: Array, axis: int = 1) -> Sums:
    """With the terms of a tile: exp(logit), and exp(logit) x value for each of `values`."""
    greatest = jnp.maximum(sums[0], jax.lax.stop_gradient(logits.max(axis)))
    shrink = jnp.exp(sums[0] - greatest)
    terms = jnp.exp(logits - jnp.expand_dims(greatest, axis))
    weighted = [terms, *(terms * value for value in values)]
    return greatest, *(
        old * shrink + new.sum(axis) for old, new in zip(sums[1:], weighted, strict=True)
    )


def log_sum(sums: Sums) -> Array:
    """The logarithm of the sum of exponentials."""
    return sums[0] + jnp.log(sums[1])
