"""The model: an image tower, a text tower, and the space where they meet."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, ShapeDtypeStruct
from jaxtyping import Bool, Float, Int, UInt8

from mm import registry
from mm.models.encoder import Encoded
from mm.models.keys import Keys
from mm.models.layers import Dtype, Linear


class Embedding(NamedTuple):
    """Unit vectors in the shared space, and the norms (without gradient) of what they came from."""

    z: Float[Array, "b e"]
    pooled_norm: Float[Array, "b"]


class Multimodal(nnx.Module):
    """Two towers and their projections to a shared space of `embed_dim`.

    `image` and `text` are specs of registered encoders. Embeddings are L2-normalized, in float32.
    """

    def __init__(
        self,
        *,
        image: Mapping,
        text: Mapping,
        embed_dim: int,
        dtype: Dtype = "float32",
        rngs: nnx.Rngs,
    ):
        def tower(kind: str, spec: Mapping) -> nnx.Module:
            spec = {"dtype": dtype, **spec}
            return registry.build(f"{kind}_encoder", spec, f"config.model.{kind}", rngs=rngs)

        self.image, self.text = tower("image", image), tower("text", text)
        self.embed_dim = embed_dim
        axes = ("embed", "projection")
        self.image_projection = Linear(
            (self.image.pooled_width,), (embed_dim,), axes, bias=False, dtype=dtype, rngs=rngs
        )
        self.text_projection = Linear(
            (self.text.pooled_width,), (embed_dim,), axes, bias=False, dtype=dtype, rngs=rngs
        )

    def encode_image(
        self,
        image: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
        *,
        keep: float = 1.0,
        rng: Keys | None = None,
    ) -> Encoded:
        """The image tower; `keep` < 1 drops patches at random and needs `rng`.

        Of uint8, 0 .. 255 becomes -1 .. 1: so they come from the input, at a quarter of the bytes.
        """
        if image.dtype == jnp.uint8:
            image = image.astype(jnp.float32) / 127.5 - 1
        return self.image(image, keep=keep, rng=rng)

    def encode_text(
        self, text: Int[Array, "b l"], *, mask: Bool[Array, "b l"], rng: Keys | None = None
    ) -> Encoded:
        """The text tower; `mask` is True where a token is real."""
        return self.text(text, mask, rng=rng)

    def project_image(self, encoded: Encoded) -> Embedding:
        """The embedding of an encoded image."""
        return embed(encoded, self.image_projection)

    def project_text(self, encoded: Encoded) -> Embedding:
        """The embedding of an encoded text."""
        return embed(encoded, self.text_projection)

    def batch_spec(self, batch_size: int) -> dict[str, ShapeDtypeStruct]:
        """Shapes and dtypes of the arrays that the towers read."""
        size, length = self.image.image_size, self.text.length
        return {
            "image": ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8),
            "text": ShapeDtypeStruct((batch_size, length), jnp.int32),
            "text_mask": ShapeDtypeStruct((batch_size, length), jnp.bool_),
        }


def embed(encoded: Encoded, projection: Linear) -> Embedding:
    """The pooled vector through a projection."""
    pooled = at_least_float32(encoded.pooled)
    norm = jnp.linalg.norm(jax.lax.stop_gradient(pooled), axis=-1)
    return Embedding(normalize(projection(encoded.pooled)), norm)


def normalize(x: Float[Array, "b e"]) -> Float[Array, "b e"]:
    """x / ||x||, in float32 at least; a zero vector stays zero."""
    x = at_least_float32(x)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-24))


def at_least_float32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """bfloat16 to float32; float64 stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
