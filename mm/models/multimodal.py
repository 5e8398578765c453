"""The model: an image and a text tower, the space where they meet, a fusion and a decoder."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, ShapeDtypeStruct
from jaxtyping import Bool, Float, Int, UInt8

from mm import registry
from mm.config import BadInput
from mm.models import decoder as _decoder  # noqa: F401  (registers the decoder)
from mm.models import fusion as _fusion  # noqa: F401  (registers the fusions)
from mm.models.encoder import Encoded
from mm.models.fusion.base import Fused
from mm.models.keys import Keys
from mm.models.layers import Dtype, Linear

Projection = Literal["linear", "affine", "none"]


class Embedding(NamedTuple):
    """Unit vectors in the shared space, and the norms (without gradient) of what they came from."""

    z: Float[Array, "b e"]
    pooled_norm: Float[Array, "b"]


class Multimodal(nnx.Module):
    """Towers, their projections to a shared space of `embed_dim`, fusion, decoder; each optional.

    `image` and `text` are specs of registered encoders, `fusion` and `decoder` those of registered
    fusions and decoders. Embeddings are L2-normalized, in float32. A projection is "linear" (CLIP), "affine", with a bias
    (BLIP; SigLIP's text), or "none", of a pooled vector that is as wide (SigLIP's image).
    """

    def __init__(
        self,
        *,
        image: Mapping | None = None,
        text: Mapping | None = None,
        embed_dim: int | None = None,
        image_projection: Projection = "linear",
        text_projection: Projection = "linear",
        fusion: Mapping | None = None,
        decoder: Mapping | None = None,
        dtype: Dtype = "float32",
        rngs: nnx.Rngs,
    ):
        def build(kind: str, spec: Mapping | None, part: str, **given: object) -> nnx.Module | None:
            if spec is None:
                return None
            spec = {"dtype": dtype, **spec}
            return registry.build(kind, spec, f"config.model.{part}", rngs=rngs, **given)

        def projection(tower: nnx.Module | None, kind: Projection) -> Linear | None:
            if tower is None or embed_dim is None:
                return None
            if kind == "none":
                if tower.pooled_width != embed_dim:
                    raise BadInput(
                        f"config.model: embed_dim={embed_dim}, and a pooled vector of width "
                        f"{tower.pooled_width} has no projection; make them equal, or project"
                    )
                return None
            sizes, axes = ((tower.pooled_width,), (embed_dim,)), ("embed", "projection")
            return Linear(*sizes, axes, bias=kind == "affine", dtype=dtype, rngs=rngs)

        self.image = build("image_encoder", image, "image")
        self.text = build("text_encoder", text, "text")
        if self.image is None and self.text is None and decoder is None:
            raise BadInput("config.model: has neither an image nor a text tower")
        self.embed_dim = embed_dim
        self.image_projection = projection(self.image, image_projection)
        self.text_projection = projection(self.text, text_projection)
        widths = {}
        if fusion is not None:
            self.need("config.model.fusion", "image", "text")
            widths = dict(image_width=self.image.width, text_width=self.text.width)
        self.fusion = build("fusion", fusion, "fusion", **widths)
        self.decoder = build("decoder", decoder, "decoder", model=self)

    def need(self, what: str, *parts: str) -> None:
        """Raises BadInput, which `what` begins, unless the model has all these parts.

        A part is "image", "text", "fusion", "decoder", "embed_dim", or "fusion.text" or
        "fusion.image": that the fusion returns such tokens.
        """
        for part in parts:
            name, _, tokens = part.partition(".")
            if getattr(self, name) is None:
                raise BadInput(f"{what}: needs config.model.{name}, which the config does not have")
            if tokens and tokens not in self.fusion.fuses:
                other = "image" if tokens == "text" else "text"
                raise BadInput(
                    f"{what}: needs {tokens} tokens that have seen the {other}; config.model."
                    f"fusion fuses {' and '.join(self.fusion.fuses) or 'vectors alone'}"
                )

    @property
    def levels(self) -> int:
        """At how many depths the towers are read."""
        return 1 if self.fusion is None else self.fusion.levels

    def encode_image(
        self,
        image: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
        *,
        keep: float = 1.0,
        replace: float = 0.0,
        draw: Keys | None = None,
        rng: Keys | None = None,
    ) -> Encoded:
        """The image tower. Of patches a share `keep` is read and a share `replace` hidden.

        Of uint8, 0 .. 255 becomes -1 .. 1: so they come from the input, at a quarter of the bytes.
        """
        how = {"levels": self.levels} if self.levels > 1 else {}
        if keep < 1 or replace > 0:
            how |= {"keep": keep, "replace": replace, "draw": draw}
        return self.image(pixels(image), rng=rng, **how)

    def encode_text(
        self,
        text: Int[Array, "b l"],
        *,
        mask: Bool[Array, "b l"],
        segments: Int[Array, "b l"] | None = None,
        rng: Keys | None = None,
    ) -> Encoded:
        """The text tower; `mask` is True where a token is real."""
        return self.text(text, mask, segments=segments, levels=self.levels, rng=rng)

    def fuse(self, image: Encoded, text: Encoded, *, rng: Keys | None = None) -> Fused:
        """The fusion of pairs: row i of one with row i of the other."""
        return self.fusion(image, text, rng)

    @property
    def words(self) -> Float[Array, "v d"]:
        """The table of words that the decoder reads."""
        return (self.decoder if self.decoder.inputs == "words" else self.text).embedding[...]

    def decode(
        self,
        text: Int[Array, "b l"] | Float[Array, "b l e"],
        memory: Encoded | None,
        *,
        reach: Int[Array, "b"] | None = None,
        hidden: Bool[Array, "b"] | None = None,
        rng: Keys | None = None,
    ) -> Float[Array, "b l v"]:
        """Logits of each token from those before it and a memory; see `Decoder`."""
        return self.decoder(text, memory, self.words, reach=reach, hidden=hidden, rng=rng)

    def project_image(self, encoded: Encoded) -> Embedding:
        """The embedding of an encoded image."""
        return embed(encoded, self.image_projection)

    def project_text(self, encoded: Encoded) -> Embedding:
        """The embedding of an encoded text."""
        return embed(encoded, self.text_projection)

    def batch_spec(self, batch_size: int) -> dict[str, ShapeDtypeStruct]:
        """Shapes and dtypes of the arrays that the towers read."""
        spec = {}
        if self.image is not None:
            size = self.image.image_size
            spec["image"] = ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)
        if (words := self.text or self.decoder) is not None:
            shape = batch_size, words.length
            spec["text"] = ShapeDtypeStruct(shape, jnp.int32)
            spec["text_mask"] = ShapeDtypeStruct(shape, jnp.bool_)
        return spec


def pixels(image: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Of uint8, 0 .. 255 becomes -1 .. 1."""
    return image.astype(jnp.float32) / 127.5 - 1 if image.dtype == jnp.uint8 else image


def embed(encoded: Encoded, projection: Linear | None) -> Embedding:
    """The pooled vector through a projection, if there is one."""
    pooled = at_least_float32(encoded.pooled)
    norm = jnp.linalg.norm(jax.lax.stop_gradient(pooled), axis=-1)
    z = encoded.pooled if projection is None else projection(encoded.pooled)
    return Embedding(normalize(z), norm)


def normalize(x: Float[Array, "b e"]) -> Float[Array, "b e"]:
    """x / ||x||, in float32 at least; a zero vector stays zero."""
    x = at_least_float32(x)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-24))


def at_least_float32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """bfloat16 to float32; float64 stays."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
