"""What a fusion is, and what it returns."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from mm.models.encoder import Encoded, EncoderSpec
from mm.models.keys import Keys
from mm.models.layers import Linear
from mm.models.pool import first_pool, last_pool, mean_pool

Pool = Literal["first", "last", "mean"]
POOLS = {"first": first_pool, "last": last_pool, "mean": mean_pool}


class Fused(NamedTuple):
    """One vector of a pair, and the tokens that know of the other modality (None: they do not).

    Tokens are as many and in the order of the towers' own; what precedes patches is there, too.
    """

    pooled: Float[Array, "b d2"]
    image: Float[Array, "b n d"] | None = None
    text: Float[Array, "b l d"] | None = None


class Fusion(nnx.Module):
    """Called with (image, text, rng), both Encoded, it returns a Fused.

    `fuses` are the modalities whose tokens it returns, `width` is that of the tokens,
    `pooled_width` that of the vector, `levels` at how many depths it reads the towers. `rng` are
    keys of the rows, None without dropout. A constructor is given `image_width` and `text_width`.
    """

    fuses: tuple[str, ...]
    width: int
    pooled_width: int
    levels: int = 1

    def __call__(self, image: Encoded, text: Encoded, rng: Keys | None = None) -> Fused:
        raise NotImplementedError


def to_width(spec: EncoderSpec, width: int, rngs: nnx.Rngs) -> Linear | None:
    """A layer from tokens of `width` to those of a stack, None where they are as wide."""
    if width == spec.width:
        return None
    return Linear((width,), (spec.width,), (None, "embed"), dtype=spec.dtype, rngs=rngs)


def adapted(layer: Linear | None, x: Array) -> Array:
    """x through a layer of `to_width`."""
    return x if layer is None else layer(x)


def pool_streams(pool: Pool, *streams: tuple[Array, Array | None]) -> Float[Array, "b d2"]:
    """The pooled vectors of (tokens, mask) side by side."""
    vectors = []
    for tokens, mask in streams:
        mask = jnp.ones(tokens.shape[:2], bool) if mask is None else mask
        vectors.append(POOLS[pool](tokens, mask))
    return jnp.concatenate(vectors, axis=-1)
