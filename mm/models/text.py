"""Text Transformer: bidirectional (as SigLIP) or causal (as CLIP); depth 0 is a bag of words."""

from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from mm import registry
from mm.config import Count, Positive
from mm.models.block import EncoderSpec
from mm.models.encoder import Encoded, Encoder
from mm.models.keys import Keys, split
from mm.models.layers import add_table, dropout, lookup, vectors
from mm.models.pool import POOLS, AttentionPool, Pooler
from mm.sharding.rules import constrain


@registry.register("text_encoder", "transformer")
class TextTransformer(nnx.Module):
    """Token ids [b, length] to tokens [b, length, width] and a pooled [b, width].

    The other keys are those of `EncoderSpec`. Padding (False in the mask) is neither attended to
    nor pooled. `pool` is "last" (the last real token, where the tokenizer puts its end mark),
    "first" (BERT's [CLS]), "mean" or "map"; `pooler`: a layer with tanh after it (BERT). `padding`
    "read": it is attended to and pooled as words are (SigLIP). `segments` is how many sentences a
    text may have, told apart by learned embeddings (BERT); `pre_norm`: a norm before the first
    block, too (BERT). `mask_token`: a learned vector stands for the id `vocab_size`, so that words
    can be masked with a tokenizer that has no token for it. At depth 0 there is no final norm
    either: the length of a word's embedding is its weight in the mean.
    """

    prefix = 0  # all tokens are words

    def __init__(
        self,
        *,
        vocab_size: Positive,
        length: Positive,
        causal: bool = False,
        pool: Literal["last", "first", "mean", "map"] = "last",
        pooler: bool = False,
        padding: Literal["masked", "read"] = "masked",
        position: Literal["learned", "none"] = "learned",
        segments: Count = 0,
        pre_norm: bool = False,
        mask_token: bool = False,
        embedding_std: float = 0.02,
        rngs: nnx.Rngs,
        **encoder: Annotated[Any, EncoderSpec],
    ):
        spec = EncoderSpec(**encoder)
        self.vocab_size, self.length, self.width = vocab_size, length, spec.width
        self.pool, self.dropout_rate, self.causal = pool, spec.dropout, causal
        self.reads_padding = padding == "read"
        self.dtype, self.pooled_width = jnp.dtype(spec.dtype), spec.width
        table = partial(vectors, rngs, width=spec.width)
        self.embedding = table(vocab_size, axis="vocab", deviation=embedding_std)
        learned = position == "learned"
        self.position_embedding = table(length, axis="tokens", deviation=0.01) if learned else None
        self.segment_embedding = table(segments) if segments else None
        self.mask_token = table(1, deviation=embedding_std) if mask_token else None
        self.context = None  # what `mm.adapt.text_context` adds
        self.pre_norm = spec.make_norm(rngs) if pre_norm else None
        self.encoder = Encoder(spec, causal=causal, rngs=rngs)
        if pool == "map":
            self.attention_pool = AttentionPool(spec, rngs=rngs)
        self.pooler = Pooler(spec, rngs=rngs) if pooler else None

    def __call__(
        self,
        text: Int[Array, "b l"],
        mask: Bool[Array, "b l"],
        *,
        segments: Int[Array, "b l"] | None = None,
        levels: int = 1,
        embedded: bool = False,
        rng: Keys | None = None,
    ) -> Encoded:
        """`mask` is True where a token is real; `segments`, of each token, default to the first.

        embedded: return what the first block reads, too.
        """
        keys, words = split(rng), None
        if self.context is not None:
            words, (text, mask, segments) = self.context.add(text, mask, segments)
        if self.reads_padding:
            mask = jnp.ones_like(mask)
        x = self.embed(text, segments)
        x = constrain(dropout(x, self.dropout_rate, keys[0]), "batch", "tokens", "width")
        found = self.encoder.at_levels(levels, x, mask, keys[1])
        tokens = found[-1]
        pool = self.attention_pool if self.pool == "map" else POOLS[self.pool]
        pooled = pool(tokens, mask)
        if self.pooler is not None:
            pooled = self.pooler(pooled)
        found = tuple(found) if levels > 1 else ()
        encoded = Encoded(tokens, pooled, mask, levels=found, embedded=x if embedded else None)
        return encoded if words is None else self.context.remove(encoded, words)

    def embed(
        self,
        text: Int[Array, "b l"],
        segments: Int[Array, "b l"] | None = None,
        place: Int[Array, ""] | None = None,
    ) -> Float[Array, "b l d"]:
        """What the first block reads. `place` is that of the first token, 0 by default."""
        x = lookup(("vocab", "embed"), self.dtype, self.embedding[...], text)
        if self.context is not None:
            x = self.context.fill(x, text)
        if self.mask_token is not None:
            masked = (text == self.vocab_size)[..., None]
            x = jnp.where(masked, self.mask_token[...].astype(x.dtype), x)
        if self.position_embedding is not None:
            table, length = self.position_embedding[...], text.shape[1]
            if place is not None:
                table = jax.lax.dynamic_slice_in_dim(table, place, length)
            elif length < len(table):  # texts may be shorter for a while
                table = table[:length]
            x = add_table(("tokens", "embed"), x, table)
        if self.segment_embedding is not None:
            segments = jnp.zeros_like(text) if segments is None else segments
            axes = (None, "embed")
            x = x + lookup(axes, self.dtype, self.segment_embedding[...], segments)
        return x if self.pre_norm is None else self.pre_norm(x)
