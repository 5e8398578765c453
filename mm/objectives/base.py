"""What an objective returns."""

from collections.abc import Mapping
from typing import NamedTuple

from jax import Array
from jaxtyping import Float


class Loss(NamedTuple):
    """A scalar to minimise and scalars to watch."""

    value: Float[Array, ""]
    metrics: Mapping[str, Float[Array, ""]]
