"""What an objective is, and what it returns."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
from flax import nnx
from jax import Array
from jaxtyping import Float


class Loss(NamedTuple):
    """A scalar to minimise and scalars to watch."""

    value: Float[Array, ""]
    metrics: Mapping[str, Float[Array, ""]]


class Objective(nnx.Module):
    """Called with (views, rng), it returns a Loss. It owns its heads, temperature and the like."""

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What it reads of a batch beside image and text."""
        return {}

    def training_flops(self, batch_size: int, embed_dim: int) -> float:
        """Matmul FLOPs of both passes of what is its own, not the towers'."""
        return 0.0
