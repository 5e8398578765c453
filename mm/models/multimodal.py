"""The model: an image and a text tower, the space where they meet, a fusion and a decoder."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int, UInt8

from mm import registry
from mm.config import BadInput
from mm.models import decoder as _decoder  # noqa: F401  (registers the decoder)
from mm.models import fusion as _fusion  # noqa: F401  (registers the fusions)
from mm.models.encoder import Encoded
from mm.models.fusion.base import OTHER, Fused
from mm.models.inputs import Read, images, texts
from mm.models.keys import Keys
from mm.models.layers import Dtype, Linear, at_least_float32
from mm.models.logits import Logits
from mm.models.memory import Entities, Memory, append

Projection = Literal["linear", "affine", "none"]


class Embedding(NamedTuple):
    """Unit vectors in the shared space, and the norms (without gradient) of what they came from."""

    z: Float[Array, "b e"]
    pooled_norm: Float[Array, "b"]


class Multimodal(nnx.Module):
    """Towers, their projections to a shared space of `embed_dim`, fusion, decoder; each optional.

    `image` and `text` are specs of registered encoders, `fusion` and `decoder` those of registered
    fusions and decoders. A projection is "linear" (CLIP), "affine", with a bias (BLIP; SigLIP's
    text), or "none", of a pooled vector that is as wide (SigLIP's image). `share` names a part of
    both towers, as "encoder" or "encoder/blocks", that is one and the same. `memory` and `entities`
    give the fusion more tokens to read (`mm.models.memory`). Embeddings are L2-normalized, in
    float32.
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
        share: str | None = None,
        memory: Mapping | None = None,
        entities: Mapping | None = None,
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
        if share is not None:
            self.need("config.model.share", "image", "text")
            share_part(self.image, self.text, share)
        self.embed_dim = embed_dim
        self.image_projection = projection(self.image, image_projection)
        self.text_projection = projection(self.text, text_projection)
        if fusion is not None:
            self.need("config.model.fusion", "image", "text")
        self.fusion = build("fusion", fusion, "fusion", model=self)
        for part in ("image", "text"):
            depth = getattr(getattr(getattr(self, part), "encoder", None), "depth", 0)
            if depth % self.levels:
                raise BadInput(
                    f"config.model.fusion: depth={self.levels} reads the towers at so many depths: "
                    f"it must divide config.model.{part}.depth={depth}"
                )
        self.decoder = build("decoder", decoder, "decoder", model=self)
        self.memory = self._extra(Memory, memory, "memory", dtype, rngs)
        self.entities = self._extra(Entities, entities, "entities", dtype, rngs)
        self.reads = images(self.image.image_shape, "image") if self.image else ()
        if (words := self.text or self.decoder) is not None:
            self.reads += texts(words.length, "text")
        if self.entities is not None:
            self.reads += (Read("entities", (self.entities.added,), "int32"),)

    def _extra(
        self, kind: type, spec: Mapping | None, part: str, dtype: Dtype, rngs: nnx.Rngs
    ) -> nnx.Module | None:
        if spec is None:
            return None
        where = f"config.model.{part}"
        self.need(where, "fusion", *kind.needs)
        extra = registry.call(kind, {"dtype": dtype, **spec}, where, rngs=rngs, model=self)
        if not self.fusion.fuses:
            raise BadInput(f"{where}: needs a fusion of tokens; config.model.fusion reads vectors")
        last = getattr(self.fusion, "causal", False) or getattr(self.fusion, "pool", "") == "last"
        if last and extra.tower in self.fusion.fuses:
            raise BadInput(
                f"{where}: its tokens follow those of the {extra.tower}, of which config.model."
                "fusion reads the last as the end; use causal=False and another pool"
            )
        return extra

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
                raise BadInput(
                    f"{what}: needs {tokens} tokens that have seen the {OTHER[tokens]}; config."
                    f"model.fusion fuses {' and '.join(self.fusion.fuses) or 'vectors alone'}"
                )

    @property
    def levels(self) -> int:
        """At how many depths the towers are read."""
        return 1 if self.fusion is None else self.fusion.levels

    def encode_image(
        self, image: UInt8[Array, "b *size c"] | Float[Array, "b *size c"], **how: Any
    ) -> Encoded:
        """The image tower. Of patches a share `keep` is read and a share `replace` hidden.

        Of uint8, 0 .. 255 becomes -1 .. 1: so they come from the input, at a quarter of the bytes.
        """
        return self.image(pixels(image), levels=self.levels, **how)

    def encode_text(self, text: Int[Array, "b l"], **how: Any) -> Encoded:
        """The text tower; `mask` is True where a token is real."""
        if self.fusion is not None and self.fusion.reads_embeddings:
            how["embedded"] = True
        return self.text(text, levels=self.levels, **how)

    @property
    def extras(self) -> list[Memory | Entities]:
        """What gives the fusion more tokens."""
        return [extra for extra in (self.memory, self.entities) if extra is not None]

    def extend(self, tower: str, encoded: Encoded, batch: Mapping[str, Array]) -> Encoded:
        """An encoding as the fusion reads it: with the extra tokens for these rows of a batch."""

        def query() -> Array:
            return self.project(tower, plain).z

        plain = encoded
        for extra in self.extras:
            if extra.tower == tower:
                encoded = append(encoded, *extra(query, batch))
        return encoded

    def fuse(self, image: Encoded, text: Encoded, *, rng: Keys | None = None) -> Fused:
        """The fusion of pairs: row i of one with row i of the other, both as `extend` made them.

        The extra tokens are not returned.
        """
        fused = self.fusion(image, text, rng)
        for extra in self.extras:
            tokens = getattr(fused, extra.tower)
            if tokens is not None:
                fused = fused._replace(**{extra.tower: tokens[:, : -extra.added]})
        return fused

    @property
    def words(self) -> Float[Array, "v d"]:
        """The table of words that the decoder reads."""
        return (self.decoder if self.decoder.inputs == "words" else self.text).embedding[...]

    def decode(
        self, text: Int[Array, "b l"] | Float[Array, "b l e"], memory: Encoded | None, **how: Any
    ) -> Logits:
        """Logits of each token from those before it and a memory; `how` is as for `Decoder`."""
        return self.decoder(text, memory, self.words, **how)

    def project(self, tower: str, encoded: Encoded) -> Embedding:
        """The embedding of what the "image" or the "text" tower encoded."""
        return embed(encoded, getattr(self, f"{tower}_projection"))


def share_part(image: nnx.Module, text: nnx.Module, part: str) -> None:
    """Makes a part of the image tower, by its path, that of the text tower, too.

    Raises BadInput unless the two are alike, to every option and shape.
    """
    found = []
    for tower in (image, text):
        *path, name = part.split("/")
        for key in path:
            tower = getattr(tower, key, None)
        found.append((tower, name, getattr(tower, name, None)))
    if not all(isinstance(module, nnx.Module) for _, _, module in found):
        raise BadInput(f"config.model.share={part!r}: is no part of both towers; try 'encoder'")
    alike = [nnx.split(module) for _, _, module in found]
    shapes = [jax.tree.map(jnp.shape, nnx.to_pure_dict(state)) for _, state in alike]
    if alike[0][0] != alike[1][0] or shapes[0] != shapes[1]:
        raise BadInput(
            f"config.model.share={part!r}: needs towers of one width, depth, mlp_dim and so on, "
            "neither causal; make their specs alike"
        )
    setattr(*found[1][:2], found[0][2])


def pixels(
    image: UInt8[Array, "b *size c"] | Float[Array, "b *size c"],
) -> Float[Array, "b *size c"]:
    """Of uint8, 0 .. 255 becomes -1 .. 1."""
    return image.astype(jnp.float32) / 127.5 - 1 if image.dtype == jnp.uint8 else image


def embed(encoded: Encoded, projection: Linear | None) -> Embedding:
    """The pooled vector through a projection, if there is one."""
    pooled = at_least_float32(encoded.pooled)
    norm = jnp.linalg.norm(jax.lax.stop_gradient(pooled), axis=-1)
    z = encoded.pooled if projection is None else projection(encoded.pooled)
    return Embedding(normalize(z), norm)


def normalize(x: Float[Array, "... e"]) -> Float[Array, "... e"]:
    """x / ||x||, in float32 at least; a zero vector stays zero."""
    x = at_least_float32(x)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-24))
