"""What an objective is, and what it returns."""

from collections.abc import Mapping
from typing import NamedTuple

from flax import nnx
from jax import Array
from jaxtyping import Float

from mm.models.inputs import Read
from mm.models.layers import Buffer

__all__ = ["Buffer", "Loss", "Objective"]


class Loss(NamedTuple):
    """A scalar to minimise and scalars to watch."""

    value: Float[Array, ""]
    metrics: Mapping[str, Float[Array, ""]]


class Objective(nnx.Module):
    """Called with (views, rng), it returns a Loss. It owns its heads, temperature and buffers.

    A constructor is given the `model`, for its widths and to refuse one that lacks what it needs.
    `key` is its name in config.objectives, `reads` what it reads of a batch beside image and text,
    `uses` what of the model beside the towers, "fusion" or "decoder", and `needs_teacher` whether
    it asks for config.teacher.
    """

    key: str = ""
    needs_teacher: bool = False
    uses: tuple[str, ...] = ()
    reads: tuple[Read, ...] = ()
