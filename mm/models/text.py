"""Text Transformer: bidirectional (as SigLIP) or causal (as CLIP); depth 0 is a bag of words."""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Int

from mm import registry
from mm.models.encoder import AttentionPool, Encoded, Encoder, EncoderSpec, last_pool, mean_pool
from mm.models.keys import Keys, split
from mm.models.layers import add_table, dropout, lookup, param
from mm.sharding.rules import constrain


@registry.register("text_encoder", "transformer")
class TextTransformer(nnx.Module):
    """Token ids [b, length] to tokens [b, length, width] and a pooled [b, width].

    The other keys are those of `EncoderSpec`. Padding (False in the mask) is neither attended to
    nor pooled. `pool` is "last" (the last real token, where the tokenizer puts its end mark),
    "mean" or "map". At depth 0 there is no final
    norm either: the length of a word's embedding is its weight in the mean.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        length: int,
        causal: bool = False,
        pool: Literal["last", "mean", "map"] = "last",
        position: Literal["learned", "none"] = "learned",
        embedding_std: float = 0.02,
        rngs: nnx.Rngs,
        **encoder: Annotated[Any, EncoderSpec],
    ):
        spec = EncoderSpec(**encoder)
        self.vocab_size, self.length, self.width = vocab_size, length, spec.width
        self.pool, self.dropout_rate = pool, spec.dropout
        self.dtype, self.pooled_width = jnp.dtype(spec.dtype), spec.width
        normal = jax.nn.initializers.normal
        shape = (vocab_size, spec.width)
        self.embedding = param(rngs, normal(embedding_std), shape, ("vocab", "embed"))
        self.position_embedding = (
            param(rngs, normal(0.01), (length, spec.width), ("tokens", "embed"))
            if position == "learned"
            else None
        )
        self.encoder = Encoder(spec, causal=causal, rngs=rngs) if spec.depth else None
        if pool == "map":
            self.attention_pool = AttentionPool(spec, rngs=rngs)

    def __call__(
        self, text: Int[Array, "b l"], mask: Bool[Array, "b l"], *, rng: Keys | None = None
    ) -> Encoded:
        keys = (None, None) if rng is None else split(rng)
        x = lookup(("vocab", "embed"), self.dtype, self.embedding[...], text)
        if self.position_embedding is not None:
            x = add_table(("tokens", "embed"), x, self.position_embedding[...])
        x = constrain(dropout(x, self.dropout_rate, keys[0]), "batch", "tokens", "width")
        tokens = x if self.encoder is None else self.encoder(x, mask, keys[1])
        if self.pool == "map":
            pooled = self.attention_pool(tokens, mask)
        else:
            pooled = (mean_pool if self.pool == "mean" else last_pool)(tokens, mask)
        return Encoded(tokens, pooled, mask)

    def training_flops(self) -> float:
        """Of both passes over one text of full length."""
        flops = 0.0 if self.encoder is None else self.encoder.training_flops(self.length)
        return flops + (
            self.attention_pool.training_flops(self.length) if self.pool == "map" else 0
        )
